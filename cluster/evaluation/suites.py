"""A suite: samples to play, and the metric that scores an answer. The held-out split is one, each benchmark another."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from actors.data.benchmarks.dataset import BenchmarkSet, find_suite
from actors.data.benchmarks.layouts import LAYOUTS
from actors.data.benchmarks.row import BenchmarkRow
from actors.data.dataset import Dataset
from actors.episode import SampleRef
from configs.judges import JudgeConfig
from configs.schema import Config
from judge.benchmarks.grading import Graded, grade_answer
from judge.benchmarks.scores import SCORES, Score, mean_score
from judge.verdict import Judge, JudgeRequest, Verdict

HELDOUT = "heldout"
"""The name of the held-out split among the suites."""
Grade = Callable[[BenchmarkRow, str, Judge, int], Awaitable[Graded]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    name: str
    path: str
    """As a data set is named in `SampleRef`."""
    identity: str
    """Of the data; see `Dataset.identity`."""
    refs: tuple[SampleRef, ...]
    """The samples to play."""
    row_at: Callable[[int, str, str], BenchmarkRow]
    """(row number, question, reference) of an episode to its row."""
    grade: Grade
    """(row, answer, judges, run) to the score of one answer."""
    metric: Score
    is_judged: bool
    """An LLM takes part, so that another judgement may differ."""


def open_suites(names: list[str], folder: Path | None, config: Config, limit: int | None) -> list[Suite]:
    """The suites of a command, in its order.

    Raises:
        ValueError: no such suite, or it needs what the command does not name.
        DataError: a set is not there, or is not the published one.
    """
    return [_heldout(config, limit) if name == HELDOUT else _benchmark(name, folder, config, limit) for name in names]


def parse_suites(text: str) -> list[str]:
    """`chartqa,mme` as names, each once; `all` is the nine benchmarks.

    Raises:
        ValueError: no such suite.
    """
    names = list(LAYOUTS) if text == "all" else [name.strip() for name in text.split(",") if name.strip()]
    known = [HELDOUT, *LAYOUTS]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"--suite={unknown[0]} is invalid: must be one or more of {', '.join(known)}, or all")
    if not names:
        raise ValueError(f"--suite is empty: give one or more of {', '.join(known)}")
    return list(dict.fromkeys(names))


def _heldout(config: Config, limit: int | None) -> Suite:
    dataset = Dataset.open(config.data.heldout, config.data.columns)
    most = limit or config.eval.num_samples or len(dataset)
    path = config.data.heldout

    async def grade(row: BenchmarkRow, answer: str, judge: Judge, run: int) -> Graded:
        request = JudgeRequest(question=row.question, reference=row.reference, predictions=(answer,), run=run)
        (outcome,) = await judge.grade(request)
        score = float(outcome.is_correct) if isinstance(outcome, Verdict) else None
        return Graded(outcome=outcome, score=score)

    return Suite(
        name=HELDOUT,
        path=path,
        identity=dataset.identity(),
        refs=tuple(SampleRef(dataset=path, row=row, uid=f"heldout-{row}") for row in range(min(most, len(dataset)))),
        row_at=lambda number, question, reference: BenchmarkRow(question=question, references=(reference,)),
        grade=grade,
        metric=mean_score("accuracy", 1.0),
        is_judged=config.judge.has_llm,
    )


def _benchmark(name: str, folder: Path | None, config: Config, limit: int | None) -> Suite:
    if folder is None:
        raise ValueError(f"--suite={name} needs --suite-dir: the folder where the benchmarks lie")
    if LAYOUTS[name].needs_llm and not config.judge.has_llm:
        raise ValueError(
            f"--suite={name} is scored by an LLM: set judge.chain=[rules,openai] and judge.llm.model, or leave it out"
        )
    path = find_suite(name, folder.absolute())
    rows = BenchmarkSet.open(name, path)
    row, refs = lru_cache(maxsize=None)(rows.row), rows.refs

    return Suite(
        name=name,
        path=f"{name}:{path}",
        identity=rows.identity(),
        refs=tuple(refs[number] for number in _chosen(rows, limit)),
        row_at=lambda number, question, reference: row(number),
        grade=lambda row, answer, judge, run: grade_answer(name, row, answer, judge, run=run),
        metric=SCORES[name],
        is_judged=LAYOUTS[name].needs_llm,
    )


def _chosen(rows: BenchmarkSet, limit: int | None) -> list[int]:
    """The rows to play. A part is drawn at random, whole units, and a larger limit adds to it."""
    if not limit or limit >= len(rows):
        return list(range(len(rows)))
    units: dict[str, list[int]] = {}
    for number in range(len(rows)):
        unit = rows.row(number).unit if rows.name == "mme" else ""
        units.setdefault(unit or str(number), []).append(number)
    groups, chosen = list(units.values()), list[int]()
    for place in np.random.default_rng(0).permutation(len(groups)):
        if len(chosen) + len(groups[place]) > limit:
            break
        chosen += groups[place]
    return sorted(chosen)


def suite_judges(judge: JudgeConfig, suites: list[Suite]) -> JudgeConfig:
    """The judges that these suites want: MathVerse compares strictly, whatever a run was trained with."""
    return judge if any(suite.name == HELDOUT for suite in suites) else replace(judge, metric="strict")
