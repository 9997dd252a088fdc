"""How often, and for how long, a group may still ask.

Every call is a try, one that is turned away (429) as well, but for this: while others of ours are under way, being
turned away says that these are too many, not that the endpoint will not take this one. Such a call lowers the limit, as
any 429 does, and spends of the deadline alone. Of a call that was the only one under way it is a try like any other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

FIRST_BACKOFF_S = 0.25
MAX_BACKOFF_S = 8.0
MIN_CALL_S = 0.001
"""Less time than this is none."""


class Tries:
    """So many tries within so many seconds, of which only those count that are spent on asking."""

    def __init__(self, *, max_tries: int, timeout_s: float) -> None:
        self._max_tries = max_tries
        self._timeout_s = timeout_s
        self._num_earlier_calls = 0
        self.left_s = timeout_s
        self.num_calls = 0
        """Since the group last started over."""
        self.num_too_many = 0
        """Of these, the ones that were turned away while others were under way: no tries."""
        self.num_successes_before = 0
        """Of the whole pool, when the newest try began, its backoff included."""
        self.is_second_chance = False
        """The round before failed for want of a judge, and a probe found the judges there."""

    @property
    def are_used_up(self) -> bool:
        return self.num_calls - self.num_too_many >= self._max_tries or self.is_late

    @property
    def is_late(self) -> bool:
        return self.left_s < MIN_CALL_S

    @property
    def is_first_call(self) -> bool:
        """Whether the group never called before."""
        return self._num_earlier_calls + self.num_calls == 0

    def renew(self, *, is_second_chance: bool) -> None:
        """Start over."""
        self._num_earlier_calls += self.num_calls
        self.num_calls = self.num_too_many = 0
        self.left_s, self.is_second_chance = self._timeout_s, is_second_chance

    @contextlib.contextmanager
    def spending(self, clock: Callable[[], float]) -> Iterator[None]:
        """Seconds of the body count against the deadline."""
        started = clock()
        try:
            yield
        finally:
            self.left_s -= clock() - started


def backoff_s(num_calls: int, jitter: float) -> float:
    """Seconds to wait before the next try: doubling from `FIRST_BACKOFF_S`, spread so that callers come back apart.

    Args:
        num_calls: that did not bring all that was asked for; after none there is nothing to wait for.
        jitter: in [0, 1); the wait is between half and all of the doubled time.
    """
    if num_calls == 0:
        return 0.0
    longest = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** (num_calls - 1))
    return longest * (0.5 + jitter / 2)
