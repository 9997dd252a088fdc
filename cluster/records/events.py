"""Events of a run: who joined, left, was restarted, re-formed or skipped, and why.

Each is a line of RUN/events.jsonl and a line on the display. Counters of them are metrics of the step.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from cluster.records.files import append_line
from cluster.records.reading import read_objects

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
    """The events of a run with their times, oldest first; at most the `last` ones. A damaged line is left out."""
    entries = read_objects(folder / FILE, last=last)
    return [logged for entry in entries if (logged := _parse(entry)) is not None]


def _parse(fields: Mapping[str, Any]) -> LoggedEvent | None:
    """None where these are not the fields of an event, on which pages and tables rely. Any kind is one."""
    texts = {name: fields.get(name, "") for name in ("kind", "who", "detail")}
    at, step, seconds = (fields.get(name) for name in ("time", "step", "seconds"))
    if not all(isinstance(text, str) for text in texts.values()) or not (texts["kind"] and texts["who"]):
        return None
    if not isinstance(at, int | float) or not all(x is None or isinstance(x, int | float) for x in (step, seconds)):
        return None
    try:
        datetime.fromtimestamp(at)
        event = Event(
            **texts,
            step=None if step is None else int(step),
            seconds=seconds if seconds is not None and math.isfinite(seconds) else None,
        )
        return LoggedEvent(time=float(at), event=event)
    except (ValueError, OverflowError, OSError):  # NaN, or a time beyond the calendar
        return None
