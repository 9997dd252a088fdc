"""The updates since a state that can be restored: what the ranks do again when it was. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from learner.batches.batch import TrainingGroup


@dataclass(eq=False, slots=True)
class Update:
    """An update, or as much of it as was done."""

    parts: list[Sequence[TrainingGroup]] = field(default_factory=list)
    is_finished: bool = False

    @property
    def num_groups(self) -> int:
        return sum(map(len, self.parts))


class UpdateLog:
    """Updates in their order, from a state on: at first that of the start, then one of the snapshots (1, 2, ...)."""

    def __init__(self) -> None:
        self._first = 0
        """Updates that were forgotten."""
        self._updates: list[Update] = []
        self._marks = {0: 0}
        """For each state that is known, the number of updates before it."""

    @property
    def current(self) -> Update:
        """The update in progress."""
        return self._updates[-1]

    def begin(self) -> None:
        """Another update begins. Of one that was not finished, optimizer steps stay, and gradients do not."""
        if not self._updates or self.current.is_finished or self.current.parts:
            self._updates.append(Update())

    def mark(self, snapshot: int, *, like: int | None = None) -> None:
        """This snapshot is of the present state, between two updates, or of the same one as that before."""
        self._marks[snapshot] = self._first + len(self._updates) if like is None else self._marks[like]

    def forget(self, snapshot: int | None = None) -> None:
        """Nothing before this snapshot is needed any more; without one, no state is known but the present one."""
        position = self._marks[snapshot] if snapshot is not None else self._first + len(self._updates)
        self._updates = self._updates[position - self._first :]
        self._first = position
        self._marks = {each: at for each, at in self._marks.items() if at >= position and each}

    def clear(self) -> None:
        """Another state was loaded: that of the start, from now on."""
        self._first, self._updates, self._marks = 0, [], {0: 0}

    def since(self, snapshot: int) -> list[Update] | None:
        """The updates after this snapshot, 0 for the state at the start; None if they are not known."""
        position = self._marks.get(snapshot)
        return None if position is None or position < self._first else self._updates[position - self._first :]
