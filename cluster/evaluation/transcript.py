"""Every episode of an evaluation on disk, in the columns of a run's episodes, so that a killed evaluation goes on.

Parts of some episodes each are written whole or not at all. A part may hold later judgements of recorded answers: then
only what they change is filled in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.errors import RunError, root_cause
from actors.needs import Need, need_of
from actors.play import Kind
from actors.views import parse_view
from cluster.heldout import HeldoutPlay
from cluster.records.episodes import outcome_columns, rows_of_evaluation, write_episodes
from cluster.records.files import write_atomically
from judge.verdict import Outcome

PART = re.compile(r"part-\d{6,}\.parquet")
PART_ROWS = 64
"""Episodes that a kill may cost."""
IDENTITY = "identity.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """One recorded episode, without its tokens."""

    kind: Kind
    sample: str
    row: int
    question: str
    reference: str
    answer: str | None
    scores: tuple[float, ...]
    """One per judgement; none where there is no verdict."""
    asked: bool
    is_well_formed: bool
    needs_full: bool | None
    need: Need | None
    """What the sample needs beside the quarter view, where its data set says so."""
    is_right_tool: bool | None
    """Whether the answer came after just what is needed; None where that is not known, or there was no choice."""
    least_visual_tokens: int | None
    """Visual tokens of just what is needed; None where the last is."""
    num_visual_tokens: int
    num_generated_tokens: int
    seconds: float

    @property
    def score(self) -> float | None:
        return sum(self.scores) / len(self.scores) if self.scores else None


def play_of(row: Mapping[str, Any]) -> Play:
    """Of a row of a part."""
    turns = row["turns"]
    names = ("kind", "sample", "row", "question", "reference", "answer", "asked", "is_well_formed")
    return Play(
        **{name: row[name] for name in names},
        needs_full=row.get("needs_full"),
        need=need_of(parse_view(row["needed_view"])) if row.get("needed_view") else None,
        is_right_tool=row.get("is_right_tool"),
        least_visual_tokens=row.get("least_visual_tokens"),
        scores=tuple(row["scores"]),
        num_visual_tokens=sum(turn["num_visual_tokens"] for turn in turns),
        num_generated_tokens=sum(len(turn["completion_ids"]) for turn in turns),
        seconds=row["seconds"],
    )


def _read(part: Path) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = pq.read_table(part).to_pylist()
    except (pa.ArrowException, OSError) as error:
        why = root_cause(error)
        raise RunError(f"{part} cannot be read ({why}): delete it, and its episodes are played again") from error
    return rows


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where, why = error.filename or folder, error.strerror or error
        raise RunError(f"{where} cannot be written: {why}; make room or set --out, then repeat the command") from error


class Transcript:
    """The folder of one suite."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Open, and read what is there.

        Raises:
            RunError: it holds episodes of another policy, data set or setting.
        """
        self.folder = folder
        self.plays: dict[tuple[Kind, str], Play] = {}
        self._waiting: list[dict[str, Any]] = []
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._check(identity)
        self._parts = sorted(path for path in folder.iterdir() if PART.fullmatch(path.name))
        for part in self._parts:
            for row in _read(part):
                self._take(row)

    def _check(self, identity: Mapping[str, Any]) -> None:
        file, now = self.folder / IDENTITY, json.loads(json.dumps(identity))
        if not file.is_file():
            return write_atomically(file, json.dumps(now, indent=1))
        before = json.loads(file.read_text(encoding="utf-8"))
        if differing := sorted(name for name in {*now, *before} if now.get(name) != before.get(name)):
            raise RunError(
                f"{self.folder} holds an evaluation with another {' and '.join(differing)}: give --restart to repeat "
                f"it, or another folder with --out"
            )

    def add(self, play: HeldoutPlay) -> None:
        """Record an episode."""
        for row in rows_of_evaluation(0, [play]):
            self._add(row)

    def add_scores(self, play: Play, scores: Sequence[float], outcome: Outcome) -> None:
        """Record later judgements of a recorded answer: all its scores now, and the first outcome."""
        columns = {} if play.scores else outcome_columns(outcome)
        self._add({"kind": play.kind, "sample": play.sample, "scores": list(scores), **columns})

    def _add(self, row: dict[str, Any]) -> None:
        self._take(row)
        self._waiting.append(row)
        if len(self._waiting) >= PART_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what is not on disk yet."""
        if not self._waiting:
            return
        number = len(self._parts) + 1
        while (part := self.folder / f"part-{number:06d}.parquet").exists():  # of another process
            number += 1
        with _writing(self.folder):
            write_episodes(part, self._waiting)
        self._parts.append(part)
        self._waiting = []

    def merge(self, out: Path, step: int) -> None:
        """Write all episodes into one file, each once, with their last judgement."""
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        for part in self._parts:
            for row in _read(part):
                key = (row["kind"], row["sample"])
                later = {name: value for name, value in row.items() if value is not None}
                rows[key] = rows.get(key, {}) | later | {"step": step}
        with _writing(out.parent):
            out.parent.mkdir(parents=True, exist_ok=True)
            write_episodes(out, rows.values())

    def _take(self, row: Mapping[str, Any]) -> None:
        key = (row["kind"], row["sample"])
        if row.get("turns") is not None:
            self.plays[key] = play_of(row)
        elif key in self.plays:
            self.plays[key] = replace(self.plays[key], scores=tuple(row["scores"]))
