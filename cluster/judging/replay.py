"""`visionthink judge replay`: the recorded episodes of a run, scored again under another judge. Nothing is generated.

A verdict that was recorded under the very same judge stands as it is, so the judge of the run itself changes nothing
and is not asked, whatever became of the cache. Steps are read, judged and added up one by one.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

from actors.errors import RunError
from cluster.judging.recorded import RecordedGroup, read_step, step_files
from cluster.judging.replay_asking import Asking, ReplayJudge, is_same_judge, kept_outcome
from cluster.judging.replay_report import (
    ChangedRow,
    ReplayedGroup,
    ReplayReport,
    Tally,
    add_examples,
    changed_rows,
    tally_groups,
)
from configs.load import load_config
from configs.schema import Config
from judge.llm.version import judge_version
from judge.reward import group_rewards
from judge.verdict import Verdict

REPLAY_KIND = "replay"
"""Kind of the rows that `--out` writes for `judge check --set`."""


def find_judge(run_dir: Path, overrides: Sequence[str], name: str | None) -> ReplayJudge:
    """The judge that overrides on the run's own settings describe, or on those of the config `name`.

    Raises:
        RunError: no folder of a run, or, without a name, settings that this version does not read.
        ValueError: a name or override that cannot work.
    """
    saved = run_dir / "config.yaml"
    if not saved.is_file():
        raise RunError(f"{run_dir} has no config.yaml: name the folder of a run")
    of_run: Config | None = None
    try:
        of_run = load_config(str(saved))
    except ValueError as error:
        if name is None:
            raise RunError(
                f"{saved} is of another version ({error}): give other settings with --config NAME"
            ) from error
    config = load_config(name or str(saved), overrides)
    version = judge_version(config.judge)
    return ReplayJudge(config=config, version=version, is_of_run=_version_of(of_run) == version)


def _version_of(config: Config | None) -> str | None:
    """Of the judge of these settings; None where nobody can tell any more, as its wording is gone."""
    try:
        return None if config is None else judge_version(config.judge)
    except ValueError:
        return None


def _say_nothing(*_: object) -> None:
    """Nobody to tell."""


async def replay_run(
    run_dir: Path,
    judge: ReplayJudge,
    *,
    out: Path | None = None,
    advance: Callable[[int, int], None] = _say_nothing,
    warn: Callable[[str], None] = _say_nothing,
) -> ReplayReport:
    """Score all recorded steps again.

    Args:
        out: file for the rows whose verdict changes, in the columns of a gold set; None writes none.
        advance: told (steps done, steps in all).
        warn: told why the replay waits for its judge.

    Raises:
        RunError: no run, or a step that cannot be read.
        JudgeError: the judge or the cache cannot be used.
    """
    files = step_files(run_dir)
    steps: dict[int, Tally] = {}
    examples: tuple[ChangedRow, ...] = ()
    async with Asking(judge, warn) as asking, _changed_rows_file(out) as write:
        advance(0, len(files))
        for num_done, file in enumerate(files, 1):
            groups = await _replay_step(await asyncio.to_thread(read_step, file), judge, asking)
            for step in sorted({group.recorded.step for group in groups}):
                of_step = [group for group in groups if group.recorded.step == step]
                steps[step] = steps.get(step, Tally()) + tally_groups(of_step, judge.config.train.min_scored)
            rows = list(changed_rows(groups))
            write(rows)
            examples = add_examples(examples, rows)
            advance(num_done, len(files))
        return ReplayReport(steps=steps, asked=asking.asked, examples=examples)


async def _replay_step(
    recorded: Sequence[RecordedGroup], judge: ReplayJudge, asking: Asking
) -> tuple[ReplayedGroup, ...]:
    is_same = is_same_judge(recorded, version=judge.version, is_of_run=judge.is_of_run)

    async def replay(group: RecordedGroup) -> ReplayedGroup:
        kept = [
            kept_outcome(episode, judge.version, is_same=is_same, has_llm=judge.config.judge.has_llm)
            for episode in group.episodes
        ]
        outcomes = await asking.fill(group, kept)
        conducts = [episode.conduct for episode in group.episodes]
        rewards = group_rewards(conducts, outcomes, judge.config.reward)
        return ReplayedGroup(recorded=group, outcomes=outcomes, rewards=rewards)

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(replay(group)) for group in recorded]
    return tuple(task.result() for task in running)


@asynccontextmanager
async def _changed_rows_file(path: Path | None) -> AsyncIterator[Callable[[Sequence[ChangedRow]], None]]:
    """Writes changed rows as JSON lines; the file is there once all of them are."""
    if path is None:
        yield lambda rows: None
        return
    partial = path.with_name(path.name + ".tmp")
    try:
        lines = partial.open("w", encoding="utf-8")
    except OSError as error:
        raise RunError(f"--out {path} cannot be written: {error}") from error
    seen: set[tuple[str, str, str]] = set()
    try:
        with lines:
            yield lambda rows: _write_rows(rows, lines, seen)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _write_rows(rows: Sequence[ChangedRow], lines: IO[str], seen: set[tuple[str, str, str]]) -> None:
    """Each question, reference and answer once. A row without a verdict has nothing to settle."""
    for row in rows:
        texts = (row.question, row.reference, row.prediction)
        if isinstance(row.after, Verdict) and texts not in seen:
            seen.add(texts)
            names = ("question", "reference", "prediction")
            verdict = {"verdict": int(row.after.is_correct), "kind": REPLAY_KIND}
            lines.write(json.dumps({**dict(zip(names, texts, strict=True)), **verdict}) + "\n")
