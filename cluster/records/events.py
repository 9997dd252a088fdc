"""Events of a run: who joined, left, was restarted, re-formed or skipped, and why.

Each is a line of RUN/events.jsonl and a line on the display. Counters of them are metrics of the step.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

FILE = "events.jsonl"

Kind = Literal[
    "join", "leave", "restart", "drain", "wedged", "preempted", "reform", "replay", "scale", "pending", "skip", "mask",
    "save", "save_failed", "stop", "fenced",
]  # fmt: skip
WARNINGS = frozenset({"leave", "wedged", "preempted", "replay", "save_failed", "fenced"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a member or to the run."""

    kind: Kind
    who: str
    """A member, such as `rollout worker 2`, `learner` or `judges`."""
    detail: str = ""
    """What, and why."""
    step: int | None = None

    def line(self) -> str:
        """One line for the display."""
        return f"{self.who}: {self.kind}" + (f": {self.detail}" if self.detail else "")


OnEvent = Callable[[Event], None]


class EventLog:
    """Appends events to RUN/events.jsonl, shows them and counts them.

    Each line is written by one call, so that a killed run leaves whole lines but for the last one.
    """

    def __init__(self, folder: Path, *, say: Callable[[str], None], warn: Callable[[str], None]) -> None:
        self._path = folder / FILE
        self._say = say
        self._warn = warn
        self._counts: Counter[str] = Counter()

    def add(self, event: Event) -> None:
        """Record an event. A disk that is full costs the line in the file, not the run."""
        self._counts[event.kind] += 1
        line = json.dumps({"time": time.time(), **asdict(event)}) + "\n"
        try:
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, line.encode())
            finally:
                os.close(handle)
        except OSError as error:
            self._warn(f"{self._path} cannot be written: {error.strerror}")
        (self._warn if event.kind in WARNINGS else self._say)(event.line())

    def figures(self) -> dict[str, float]:
        """Events so far by kind, as metrics."""
        return {f"events/{kind}": float(num) for kind, num in sorted(self._counts.items())}


def read_events(folder: Path) -> list[Event]:
    """The events of a run, oldest first; a torn last line is left out."""
    path = folder / FILE
    events = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            fields = json.loads(line)
        except ValueError:
            continue
        fields.pop("time")
        events.append(Event(**fields))
    return events
