"""Episodes as a run recorded them, group by group: what scoring them again needs, and no token of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.errors import RunError
from cluster.records.episodes import EPISODES
from judge.reward import Conduct
from judge.verdict import NoVerdict, Outcome, Usage, Verdict

_NEEDED = ("step", "sample", "index", "question", "reference", "asked", "is_well_formed")
"""Columns in which every row has a value."""
_NULLABLE = ("answer", "is_correct", "judge", "reason", "reward")
_LATER = ("judge_version", "judge_model", "num_calls", "prompt_tokens", "reply_tokens")
"""Columns that the first runs did not write."""
_VIEWS = "turns.list.element.view"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedEpisode:
    """One row: what a judge saw, what it said, what that earned."""

    index: int
    answer: str | None
    outcome: Outcome
    reward: float | None
    conduct: Conduct


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedGroup:
    """The episodes of one sample in one step."""

    step: int
    sample: str
    question: str
    reference: str
    episodes: tuple[RecordedEpisode, ...]


def step_files(run_dir: Path) -> list[Path]:
    """The recorded steps in order.

    Raises:
        RunError: the folder is not a run's, or no step of it was recorded.
    """
    if not (run_dir / "config.yaml").is_file():
        raise RunError(f"{run_dir} has no config.yaml: name the folder of a run")
    files = sorted((run_dir / "episodes").glob("step-*.parquet"))
    if not files:
        raise RunError(f"{run_dir} has no episodes/step-*.parquet: no step of this run was recorded")
    return files


def read_step(file: Path) -> tuple[RecordedGroup, ...]:
    """All groups of a step, in the order they were written. Files of earlier versions are read as well.

    Raises:
        RunError: the file is damaged, or was not written by a run; names file and column.
    """
    rows = _read_rows(file)
    groups = groupby(rows, key=lambda row: (row["step"], row["sample"], row["question"], row["reference"]))
    return tuple(
        RecordedGroup(
            step=step,
            sample=sample,
            question=question,
            reference=reference,
            episodes=tuple(_episode(row) for row in members),
        )
        for (step, sample, question, reference), members in groups
    )


def _read_rows(file: Path) -> list[dict[str, Any]]:
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            columns = _check_columns(parquet.schema_arrow, file)
            table = parquet.read(columns=[*columns, _VIEWS])
    except (OSError, pa.ArrowException) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise RunError(f"{file} cannot be read: {reason}; move it away to leave this step out") from error
    for name in (*_NEEDED, "turns"):
        if table.column(name).null_count:
            raise RunError(f"{file} was not written by a run: column {name!r} has empty cells")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _check_columns(schema: pa.Schema, file: Path) -> list[str]:
    """The columns to read: all but those that an earlier version did not write."""
    found = [name for name in (*_NEEDED, *_NULLABLE, *_LATER) if name in schema.names or name not in _LATER]
    for name in (*found, "turns"):
        if name not in schema.names:
            raise RunError(f"{file} was not written by a run: it has no column {name!r}")
        wanted, given = EPISODES.field(name).type, schema.field(name).type
        if wanted != given:
            raise RunError(f"{file} was not written by a run: column {name!r} is {given}, not {wanted}")
    return found


def _episode(row: dict[str, Any]) -> RecordedEpisode:
    return RecordedEpisode(
        index=row["index"],
        answer=row["answer"],
        outcome=_outcome(row),
        reward=row["reward"],
        conduct=Conduct(
            asked=row["asked"],
            is_answered=row["answer"] is not None,
            is_well_formed=row["is_well_formed"],
            offers_tool=_offers_tool(row["turns"]),
        ),
    )


def _outcome(row: dict[str, Any]) -> Outcome:
    reason = row["reason"] or ""
    usage = Usage(
        num_calls=row.get("num_calls") or 0,
        prompt_tokens=row.get("prompt_tokens") or 0,
        reply_tokens=row.get("reply_tokens") or 0,
    )
    if row["is_correct"] is None:
        return NoVerdict(reason=reason, usage=usage)
    return Verdict(
        is_correct=row["is_correct"],
        judge=row["judge"] or "",
        reason=reason,
        judge_version=row.get("judge_version") or "",
        model=row.get("judge_model") or "",
        usage=usage,
    )


def _offers_tool(turns: list[dict[str, Any]]) -> bool:
    views: Iterator[Any] = (turn["view"] for turn in turns)
    return next(views, None) == "quarter"
