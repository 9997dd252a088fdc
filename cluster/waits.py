"""How long a step waited for verdicts alone: seconds in which judges, and nothing else, held it up."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


class VerdictWait:
    """Adds up the seconds in which every group under way had been played and at least one was being judged."""

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
        """A group is played in the body."""
        self._advance()
        self._num_playing += 1
        try:
            yield
        finally:
            self._advance()
            self._num_playing -= 1

    @contextlib.contextmanager
    def judging(self) -> Iterator[None]:
        """A group's verdicts are awaited in the body."""
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
