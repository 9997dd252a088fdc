"""`visionthink judge replay`: judges the recorded answers of a run again under other settings, without new rollouts.

An LLM's verdict that was recorded under the same version of the judge stands; rules decide again, and everything else
comes from the cache or is asked. Of the answers only counts and the changed ones stay in memory.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from actors.errors import RunError
from cluster.judging.check import pool_in_process
from cluster.records.episodes import EPISODES
from configs.judges import JudgeConfig
from judge.llm.version import judge_version
from judge.pool import JudgePool
from judge.trust.check import Rate
from judge.verdict import Judge, JudgeCounts, JudgeRequest, Verdict

DECIDED = {True: "right", False: "wrong", None: "no verdict"}
NO_ANSWER = "no answer"  # counts as wrong whatever the judge
GROUP = ("step", "sample", "question", "reference")
COLUMNS = (*GROUP, "answer", "is_correct", "reason", "judge_version")
MAX_ROWS, MAX_CHARS = 10, 60  # of a table


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReport:
    """`before` is as recorded, `after` is under the new settings."""

    counts: Mapping[tuple[int, str, str], int]
    """(step, decision before, decision after) -> episodes; `NO_ANSWER` is a decision."""
    changed: Sequence[dict[str, str]]
    """Answers with a changed verdict, without duplicates: `question, reference, prediction, before, after`."""
    took: JudgeCounts

    def changes(self) -> Counter[str]:
        """Number of answers by change, such as `wrong to right`, including unchanged ones."""
        counts: Counter[str] = Counter()
        for (_, before, after), num in self.counts.items():
            if before != NO_ANSWER:
                counts[f"{before} to {after}"] += num
        return counts

    @property
    def changed_rate(self) -> Rate:
        """Fraction of changed answers; losing or gaining a verdict counts."""
        changes = self.changes()
        num_same = sum(changes[f"{name} to {name}"] for name in DECIDED.values())
        return Rate(num_hits=changes.total() - num_same, num_cases=changes.total())

    def accuracy(self, steps: Collection[int]) -> tuple[float | None, float | None]:
        """Before and after, over the scored episodes; None if there are none."""
        rates = []
        for when in (1, 2):
            scored = [
                (key[when], num) for key, num in self.counts.items() if key[0] in steps and key[when] != "no verdict"
            ]
            num_right = sum(num for decision, num in scored if decision == "right")
            rates.append(Rate(num_hits=num_right, num_cases=sum(num for _, num in scored)).share)
        return rates[0], rates[1]

    def figures(self) -> dict[str, object]:
        """The output of `--json`. An accuracy without episodes is null."""
        rate, names = self.changed_rate, ("accuracy_before", "accuracy_after")
        steps = sorted({step for step, _, _ in self.counts})
        return {
            "num_episodes": sum(self.counts.values()),
            "num_answers": rate.num_cases,
            "num_changed": rate.num_hits,
            "changed_share": rate.share,
            "changed_share_interval": list(rate.interval),
            "changes": dict(self.changes()),
            **dict(zip(names, self.accuracy(steps), strict=True)),
            "num_llm_calls": self.took.num_llm_calls,
            "num_cache_hits": self.took.num_cache_hits,
            "cost_usd": self.took.cost_usd,
            "changed": self.changed,
            "steps": [{"step": n, **dict(zip(names, self.accuracy((n,)), strict=True))} for n in steps],
        }


async def replay_run(
    run_dir: Path,
    config: JudgeConfig,
    *,
    make: Callable[[JudgeConfig], Judge] | None = None,
    advance: Callable[[int, int], None] = lambda num_done, num_all: None,
    warn: Callable[[str], None] = lambda text: None,
) -> ReplayReport:
    """Judge all recorded steps again. `advance` is called with (steps done, total steps).

    Raises:
        RunError: no run, or a step that cannot be read.
        JudgeError: the judge or the cache cannot be used.
    """
    files = sorted((run_dir / "episodes").glob("step-*.parquet"))
    if not files:
        raise RunError(f"{run_dir} has no episodes/step-*.parquet: give a run folder with at least one finished step")
    version = judge_version(config) or "rules"
    counts: Counter[tuple[int, str, str]] = Counter()
    changed: dict[tuple[str, ...], dict[str, str]] = {}
    async with pool_in_process(config, make=make, has_cache=True, warn=warn) as pool:
        for num_done, file in enumerate(files):
            advance(num_done, len(files))
            groups = await asyncio.to_thread(read_step, file)
            async with asyncio.TaskGroup() as tasks:
                judged = [tasks.create_task(_judge_again(pool, group, version)) for group in groups]
            for group, task in zip(groups, judged, strict=True):
                for row, (is_correct, reason) in zip(group, task.result(), strict=True):
                    decisions = DECIDED[row["is_correct"]], DECIDED[is_correct]
                    before, after = decisions if row["answer"] is not None else (NO_ANSWER, NO_ANSWER)
                    counts[row["step"], before, after] += 1
                    if before != after:
                        key = (row["question"], row["reference"], row["answer"])
                        texts = dict(zip(("question", "reference", "prediction"), key, strict=True))
                        said = {"before": f"{before}: {row['reason']}", "after": f"{after}: {reason}"}
                        changed.setdefault(key, {**texts, **said})
        return ReplayReport(counts=counts, changed=list(changed.values()), took=pool.counters)


def read_step(file: Path) -> list[list[dict[str, Any]]]:
    """The episodes of a step as they were written, group by group: the columns `COLUMNS`.

    Raises:
        RunError: the file is damaged, or was not written by a run of this version; names file and column.
    """
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            for name in COLUMNS:
                found = parquet.schema_arrow.field(name).type if name in parquet.schema_arrow.names else "missing"
                if found != (wanted := EPISODES.field(name).type):
                    raise RunError(f"{file} was not written by this version: column {name!r} is {found}, not {wanted}")
            rows = parquet.read(columns=list(COLUMNS)).to_pylist()
    except (OSError, pa.ArrowException) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise RunError(f"{file} cannot be read: {reason}; move it away to leave this step out") from error
    return [list(members) for _, members in groupby(rows, key=lambda row: [row[name] for name in GROUP])]


async def _judge_again(pool: JudgePool, group: Sequence[dict[str, Any]], version: str) -> list[tuple[bool | None, str]]:
    """(is it right, reason) per episode: as recorded where there was no answer, or where this very LLM decided."""
    is_open = [row["answer"] is not None and row["judge_version"] != version for row in group]
    answers = tuple(row["answer"] for row, asks in zip(group, is_open, strict=True) if asks)
    request = JudgeRequest(question=group[0]["question"], reference=group[0]["reference"], predictions=answers)
    outcomes = await pool.grade(request) if answers else ()
    judged = iter([(o.is_correct if isinstance(o, Verdict) else None, o.reason) for o in outcomes])
    return [
        next(judged) if asks else (row["is_correct"], row["reason"]) for row, asks in zip(group, is_open, strict=True)
    ]


def replay_tables(report: ReplayReport) -> list[Table]:
    """Verdicts before and after, accuracy over the run, and examples. Cells are not parsed as markup."""
    verdicts, changes = Table("recorded verdict", *(f"now {name}" for name in DECIDED.values())), report.changes()
    for before in DECIDED.values():
        verdicts.add_row(before, *(str(changes[f"{before} to {after}"]) for after in DECIDED.values()))
    course, steps = Table("steps", "recorded accuracy", "accuracy now"), sorted({step for step, _, _ in report.counts})
    for some in np.array_split(steps, min(len(steps), MAX_ROWS)) if steps else ():
        cells = ("-" if share is None else f"{share:.1%}" for share in report.accuracy(some.tolist()))
        course.add_row(f"{min(some)} to {max(some)}", *cells)
    examples = Table("reference", "answer", "recorded", "now", title="examples of changed verdicts")
    for row in report.changed[:MAX_ROWS]:
        examples.add_row(*(text[:MAX_CHARS] for text in list(row.values())[1:]))
    return [table for table in (verdicts, course, examples) if table.row_count]


def replay_summary(report: ReplayReport) -> str:
    rate, took = report.changed_rate, report.took
    return (
        f"{took.num_llm_calls} LLM calls, {took.num_cache_hits} cached verdicts, {took.cost_usd:.4f} USD\n"
        f"{rate.num_hits} of {rate.num_cases} verdicts would have changed"
    )
