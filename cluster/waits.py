"""Measures how long a step waited only for verdicts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


class VerdictWait:
    """Accumulates the seconds in which no group was being generated and at least one was being judged."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._num_playing = 0
        self._num_judging = 0
        self._changed_at = clock()
        self._seconds = 0.0

    @property
    def seconds(self) -> float:
        self._advance()
        return self._seconds

    @contextlib.contextmanager
    def playing(self) -> Iterator[None]:
        """A group is generated within the body."""
        self._advance()
        self._num_playing += 1
        try:
            yield
        finally:
            self._advance()
            self._num_playing -= 1

    @contextlib.contextmanager
    def judging(self) -> Iterator[None]:
        """A group's verdicts are awaited within the body."""
        self._advance()
        self._num_judging += 1
        try:
            yield
        finally:
            self._advance()
            self._num_judging -= 1

    def _advance(self) -> None:
        now = self._clock()
        if self._num_judging and not self._num_playing:
            self._seconds += now - self._changed_at
        self._changed_at = now
