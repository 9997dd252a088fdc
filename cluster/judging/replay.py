"""`visionthink judge replay`: the recorded episodes of a run, judged again under other settings. Nothing is generated.

An LLM's verdict that was recorded under the same version of the judge stands; rules decide again, and everything else
comes from the cache or is asked. Of the episodes only figures stay in memory.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.table import Table

from actors.errors import RunError
from cluster.judging.in_process import pool_in_process
from cluster.records.recorder import EPISODES
from configs.judges import JudgeConfig
from configs.schema import Config
from judge.chain import make_judge
from judge.counts import JudgeCounts
from judge.llm.version import judge_version
from judge.pool import JudgePool
from judge.reward import Conduct, group_rewards
from judge.trust.check import Rate
from judge.verdict import Judge, JudgeRequest, NoVerdict, Outcome, Verdict
from learner.advantage import has_signal

DECISIONS = ("right", "wrong", "no verdict")
MEANS = ("reward_before", "reward_after", "accuracy_before", "accuracy_after")
TEXTS = ("question", "reference", "prediction", "before", "after")
MAX_STEP_ROWS = 10
MAX_EXAMPLES = 10
MAX_SHOWN_CHARS = 60
GROUP = ("step", "sample", "question", "reference")
EPISODE = ("asked", "is_well_formed", "answer", "is_correct", "judge", "reason", "judge_version", "reward", "turns")
_FIGURES = pa.schema([("step", pa.int64()), ("change", pa.string()), *((name, pa.float64()) for name in MEANS)])


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReport:
    """Before is as recorded, after is under the other settings."""

    episodes: pa.Table
    """`step`, `change` (such as `wrong to right`; null without an answer) and `MEANS` (null without a verdict)."""
    num_signal_gained: int
    """Groups whose rewards were all equal and would not be."""
    num_signal_lost: int
    changed: Sequence[dict[str, str]]
    """Answers decided differently, each once, with their `TEXTS`."""
    took: JudgeCounts

    @property
    def changes(self) -> dict[str, int]:
        """Answers by change, those that stay as they are too."""
        counts = pc.value_counts(self.episodes["change"].drop_null()).to_pylist()
        return {count["values"]: count["counts"] for count in counts}

    @property
    def changed_rate(self) -> Rate:
        """Of the answers; losing or getting a verdict counts."""
        num_same = sum(self.changes.get(f"{name} to {name}", 0) for name in DECISIONS)
        num_answers = sum(self.changes.values())
        return Rate(num_hits=num_answers - num_same, num_cases=num_answers)

    def means(self, steps_per_row: int) -> list[dict[str, Any]]:
        """Means of `MEANS` over each `steps_per_row` steps; `key` is the number of the row, from 0."""
        key = pc.divide(pc.subtract(self.episodes["step"], 1), steps_per_row)
        by_key = self.episodes.append_column("key", key).group_by("key")
        found = by_key.aggregate([*((name, "mean") for name in MEANS), ([], "count_all")]).sort_by("key")
        names = [name.removesuffix("_mean") for name in found.column_names]
        rows: list[dict[str, Any]] = found.rename_columns(names).to_pylist()
        return rows

    def figures(self) -> dict[str, object]:
        """For `--json`. A mean of nothing is null."""
        rate = self.changed_rate
        return {
            "num_episodes": self.episodes.num_rows,
            "num_answers": rate.num_cases,
            "num_changed": rate.num_hits,
            "changed_share": rate.share,
            "changed_share_interval": list(rate.interval),
            "changes": self.changes,
            "num_signal_gained": self.num_signal_gained,
            "num_signal_lost": self.num_signal_lost,
            **{name: pc.mean(self.episodes[name]).as_py() for name in MEANS},
            "num_llm_calls": self.took.num_llm_calls,
            "num_cache_hits": self.took.num_cache_hits,
            "cost_usd": self.took.cost_usd,
            "changed": self.changed,
            "steps": [{"step": row["key"] + 1, **{name: row[name] for name in MEANS}} for row in self.means(1)],
        }


async def replay_run(
    run_dir: Path,
    config: Config,
    *,
    make: Callable[[JudgeConfig], Judge] = make_judge,
    advance: Callable[[int, int], None] = lambda num_done, num_all: None,
    warn: Callable[[str], None] = lambda text: None,
) -> ReplayReport:
    """Judge all recorded steps again by the judge, rewards and `train.min_scored` of a config.

    Args:
        advance: told (steps done, steps in all).

    Raises:
        RunError: no run, or a step that cannot be read.
        JudgeError: the judge or the cache cannot be used.
    """
    files = sorted((run_dir / "episodes").glob("step-*.parquet"))
    if not files:
        raise RunError(f"{run_dir} has no episodes/step-*.parquet: name the folder of a run that finished a step")
    version = judge_version(config.judge) if config.judge.has_llm else "rules"
    tables, changed, signals = [_FIGURES.empty_table()], dict[Any, dict[str, str]](), Counter[tuple[bool, bool]]()
    async with pool_in_process(config.judge, make=make, has_cache=True, warn=warn) as pool:
        for num_done, file in enumerate(files):
            advance(num_done, len(files))
            groups = await asyncio.to_thread(read_step, file)
            async with asyncio.TaskGroup() as tasks:
                judged = [tasks.create_task(_judge_again(pool, group, version)) for group in groups]
            for group, outcomes in zip(groups, (task.result() for task in judged), strict=True):
                rows = compare(group, outcomes, config)
                tables.append(pa.Table.from_pylist(rows, schema=_FIGURES))
                before, after = ([row[name] for row in rows] for name in ("reward_before", "reward_after"))
                signals[has_signal(before, config.train.min_scored), has_signal(after, config.train.min_scored)] += 1
                for row in (row for row in rows if row["is_changed"]):
                    changed.setdefault(tuple(row[n] for n in TEXTS[:3]), {n: row[n] for n in TEXTS})
        took = pool.counters
    return ReplayReport(
        episodes=pa.concat_tables(tables),
        num_signal_gained=signals[False, True],
        num_signal_lost=signals[True, False],
        changed=list(changed.values()),
        took=took,
    )


def read_step(file: Path) -> list[list[dict[str, Any]]]:
    """The episodes of a step as they were written, group by group: the columns `GROUP` and `EPISODE`.

    Raises:
        RunError: the file is damaged, or was not written by a run of this version; names file and column.
    """
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            for name in (*GROUP, *EPISODE):
                found = parquet.schema_arrow.field(name).type if name in parquet.schema_arrow.names else "missing"
                if found != (wanted := EPISODES.field(name).type):
                    raise RunError(f"{file} was not written by this version: column {name!r} is {found}, not {wanted}")
            rows = parquet.read(columns=[*GROUP, *EPISODE[:-1], "turns.list.element.view"]).to_pylist()
    except (OSError, pa.ArrowException) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise RunError(f"{file} cannot be read: {reason}; move it away to leave this step out") from error
    return [list(members) for _, members in groupby(rows, key=lambda row: [row[name] for name in GROUP])]


async def _judge_again(pool: JudgePool, group: Sequence[dict[str, Any]], version: str) -> list[Outcome]:
    """One outcome per episode: the recorded one where there was no answer, or where this very LLM gave it."""
    is_open = [row["answer"] is not None and row["judge_version"] != version for row in group]
    answers = tuple(row["answer"] for row, asks in zip(group, is_open, strict=True) if asks)
    request = JudgeRequest(question=group[0]["question"], reference=group[0]["reference"], predictions=answers)
    judged = iter(await pool.grade(request) if answers else ())
    return [next(judged) if asks else _recorded(row) for row, asks in zip(group, is_open, strict=True)]


def _recorded(row: dict[str, Any]) -> Outcome:
    if row["is_correct"] is None:
        return NoVerdict(reason=row["reason"] or "")
    return Verdict(is_correct=row["is_correct"], judge=row["judge"], reason=row["reason"])


def compare(group: Sequence[dict[str, Any]], outcomes: Sequence[Outcome], config: Config) -> list[dict[str, Any]]:
    """Per episode a row of `ReplayReport.episodes`, with its `TEXTS` and whether its answer is decided differently."""
    conducts = [
        Conduct(
            asked=row["asked"],
            is_answered=row["answer"] is not None,
            is_well_formed=row["is_well_formed"],
            offers_tool=row["turns"][0]["view"] == "quarter",
        )
        for row in group
    ]
    rewards = group_rewards(conducts, outcomes, config.reward)
    rows = []
    for row, now, reward in zip(group, outcomes, rewards, strict=True):
        before, after, is_answered = _said(_recorded(row)), _said(now), row["answer"] is not None
        rows.append(
            {
                **{name: row[name] for name in GROUP},
                "prediction": row["answer"],
                "before": f"{before}: {row['reason']}",
                "after": f"{after}: {now.reason}",
                "change": f"{before} to {after}" if is_answered else None,
                "is_changed": is_answered and before != after,
                "reward_before": row["reward"],
                "reward_after": None if reward is None else reward.total,
                "accuracy_before": None if before == "no verdict" else float(before == "right"),
                "accuracy_after": None if after == "no verdict" else float(after == "right"),
            }
        )
    return rows


def _said(outcome: Outcome) -> str:
    return "no verdict" if isinstance(outcome, NoVerdict) else "right" if outcome.is_correct else "wrong"


def replay_tables(report: ReplayReport) -> list[Table]:
    """Verdicts before and after, the course of the run, and examples."""
    verdicts = Table("recorded", *(f"now {name}" for name in DECISIONS), title="verdicts on answers")
    for before in DECISIONS:
        verdicts.add_row(before, *(str(report.changes.get(f"{before} to {after}", 0)) for after in DECISIONS))
    steps = Table("steps", "episodes", "reward", "now", "accuracy", "now", title="over the run")
    size = max(1, math.ceil((pc.max(report.episodes["step"]).as_py() or 1) / MAX_STEP_ROWS))
    for row in report.means(steps_per_row=size):
        first, last = row["key"] * size + 1, (row["key"] + 1) * size
        cells = ("-" if row[name] is None else f"{row[name]:.3f}" for name in MEANS)
        steps.add_row(f"{first} to {last}" if size > 1 else f"{first}", str(row["count_all"]), *cells)
    examples = Table("reference", "answer", "recorded", "now", title="examples of what changes")
    for answer in report.changed[:MAX_EXAMPLES]:
        examples.add_row(*(answer[name][:MAX_SHOWN_CHARS] for name in TEXTS[1:]))
    return [table for table in (verdicts, steps, examples) if table.row_count]


def replay_summary(report: ReplayReport) -> str:
    rate, took = report.changed_rate, report.took
    interval = "{:.1%} to {:.1%}".format(*rate.interval)
    return (
        f"{rate.num_hits} of {rate.num_cases} verdicts would have changed (95 % interval of the share {interval}); "
        f"{report.num_signal_gained} groups gain a signal, {report.num_signal_lost} lose it; "
        f"{took.num_cache_hits} verdicts from the cache, {took.num_llm_calls} LLM calls, {took.cost_usd:.4f} USD"
    )
