"""Timing of a run: start-up and steps, without what happens between steps."""

from __future__ import annotations

import time
from collections.abc import Callable


class RunClock:
    """Seconds and episodes of the steps of a run. Checkpoints and evaluations count towards no step.

    Args:
        started_at: when the process began, on the same clock.
    """

    def __init__(self, started_at: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started_at = started_at
        self._step_began_at = clock()
        self._first_step_at: float | None = None
        self._step_seconds = 0.0
        self._num_episodes = 0

    @property
    def started_at(self) -> float:
        """When the process began, on the clock of this object."""
        return self._started_at

    def begin_step(self) -> None:
        """Start timing a step; the time since the end of the last step is not counted."""
        self._step_began_at = self._clock()

    def end_step(self, num_episodes: int) -> float:
        """End the step and return its seconds; the next one starts."""
        now = self._clock()
        seconds, self._step_began_at = now - self._step_began_at, now
        if self._first_step_at is None:
            self._first_step_at = now
        self._step_seconds += seconds
        self._num_episodes += num_episodes
        return seconds

    def figures(self) -> dict[str, float | None]:
        """`first_step_s` and `wall_s` from the start of the process; None for what has not happened."""
        first = None if self._first_step_at is None else round(self._first_step_at - self._started_at, 2)
        rate = round(self._num_episodes / self._step_seconds, 2) if self._step_seconds else None
        return {
            "first_step_s": first,
            "episodes_per_s": rate,
            "wall_s": round(self._clock() - self._started_at, 2),
        }
