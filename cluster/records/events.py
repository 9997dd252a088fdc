"""Events of a run: who joined, left, was restarted, re-formed or skipped, and why.

Each is a line of RUN/events.jsonl and a line on the display. Counters of them are metrics of the step.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from cluster.records.files import append_line

FILE = "events.jsonl"

Kind = Literal[
    "join", "leave", "restart", "drain", "wedged", "preempted", "reform", "replay", "scale", "pending", "skip", "mask",
    "save", "save_failed", "stop", "fenced",
]  # fmt: skip
WARNINGS = frozenset({"leave", "wedged", "preempted", "replay", "skip", "save_failed", "fenced"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a member or to the run."""

    kind: Kind
    who: str
    """A member, such as `rollout worker 2`, `learner` or `judges`."""
    detail: str = ""
    """What, and why."""
    step: int | None = None
    seconds: float | None = None
    """What it cost the run, where that was measured: of a `reform` and a `replay` the time without progress, and of a
    `join` the time for which groups had waited while no worker was there."""

    def line(self) -> str:
        """One line for the display."""
        return f"{self.who}: {self.kind}" + (f": {self.detail}" if self.detail else "")


OnEvent = Callable[[Event], None]


class EventLog:
    """Appends events to RUN/events.jsonl, shows them and counts them."""

    def __init__(self, folder: Path, *, say: Callable[[str], None], warn: Callable[[str], None]) -> None:
        self._path = folder / FILE
        self._say = say
        self._warn = warn
        self._counts: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def add(self, event: Event) -> None:
        """Record an event. A disk that is full costs the line in the file, not the run."""
        self._counts[event.kind] += 1
        self._seconds[event.kind] += event.seconds or 0.0
        try:
            append_line(self._path, {"time": time.time(), **asdict(event)})
        except OSError as error:
            self._warn(f"{self._path} cannot be written: {error.strerror}")
        (self._warn if event.kind in WARNINGS else self._say)(event.line())

    def figures(self) -> dict[str, float]:
        """Events so far by kind, as metrics."""
        return {f"events/{kind}": float(num) for kind, num in sorted(self._counts.items())}

    def num(self, kind: Kind) -> int:
        """Events of a kind so far."""
        return self._counts[kind]

    def seconds(self, *kinds: Kind) -> float:
        """What the events of these kinds cost so far, where it was measured."""
        return sum(self._seconds[kind] for kind in kinds)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedEvent:
    """An event and when it was logged."""

    time: float
    """Wall-clock time."""
    event: Event


def read_events(folder: Path) -> list[Event]:
    """The events of a run, oldest first; a torn line is left out."""
    return [logged.event for logged in read_log(folder)]


def read_log(folder: Path, *, last: int | None = None) -> list[LoggedEvent]:
    """The events of a run with their times, oldest first; at most the `last` ones. A torn line is left out."""
    path = folder / FILE
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    logged = []
    for line in lines if last is None else lines[-last:]:
        try:
            fields = json.loads(line)
            known = {name: fields[name] for name in Event.__dataclass_fields__ if name in fields}
            logged.append(LoggedEvent(time=float(fields["time"]), event=Event(**known)))
        except (ValueError, KeyError, TypeError):
            continue
    return logged
