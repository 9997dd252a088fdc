"""How often, and for how long, a group may still ask."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

FIRST_BACKOFF_S = 0.25
MAX_BACKOFF_S = 8.0


class Tries:
    """So many tries within so many seconds, of which only those count that are spent on asking."""

    def __init__(self, *, max_tries: int, timeout_s: float) -> None:
        self._max_tries = max_tries
        self._timeout_s = timeout_s
        self.left_s = timeout_s
        self.num_failed = 0
        self.num_calls = 0
        """Also of rounds before this one."""
        self.num_successes_before = 0
        """Of the whole pool, when the newest try began, its backoff included."""
        self.is_second_chance = False
        """The round before failed for want of a judge, and a probe found the judges there."""

    @property
    def are_used_up(self) -> bool:
        return self.num_failed >= self._max_tries or self.left_s <= 0

    def renew(self, *, is_second_chance: bool) -> None:
        """Start over."""
        self.left_s, self.num_failed, self.is_second_chance = self._timeout_s, 0, is_second_chance

    @contextlib.contextmanager
    def spending(self, clock: Callable[[], float]) -> Iterator[None]:
        """Seconds of the body count against the deadline."""
        started = clock()
        try:
            yield
        finally:
            self.left_s -= clock() - started


def backoff_s(num_failed_tries: int, jitter: float) -> float:
    """Seconds to wait before the next try: doubling from `FIRST_BACKOFF_S`, spread so that callers come back apart.

    Args:
        num_failed_tries: after none there is nothing to wait for.
        jitter: in [0, 1); the wait is between half and all of the doubled time.
    """
    if num_failed_tries == 0:
        return 0.0
    longest = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** (num_failed_tries - 1))
    return longest * (0.5 + jitter / 2)
