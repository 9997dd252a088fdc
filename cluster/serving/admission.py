"""Who is served now, who waits, and who is told to come back later."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Iterator

from cluster.serving.errors import ApiError

MOST_RETRY_S = 60


class Ticket:
    """Of one request that is inside. What it holds of bodies and encoded pictures counts against the memory of all."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.num_bytes = 0

    def hold(self, num_bytes: int) -> None:
        """It holds that much now; ApiError (429) where all together would hold too much. Less is always possible."""
        self._admission.change_held(num_bytes - self.num_bytes)
        self.num_bytes = num_bytes


class Admission:
    """Serves `max_running` requests at a time and lets `max_waiting` more wait, within `max_bytes` of memory.

    Mutable: it counts. `smoothing` is the weight of the newest request in the mean service time.
    """

    def __init__(self, *, max_running: int, max_waiting: int, max_bytes: int, smoothing: float = 0.1) -> None:
        self._most = max_running + max_waiting
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._max_running = max_running
        self._running = asyncio.Semaphore(max_running)
        self._smoothing = smoothing
        self._mean_s = 1.0
        self.num_inside = 0

    @property
    def retry_after_s(self) -> int:
        """When the requests inside will be served, in whole seconds."""
        return min(MOST_RETRY_S, max(1, math.ceil(self._mean_s * self.num_inside / self._max_running)))

    @contextlib.contextmanager
    def ticket(self) -> Iterator[Ticket]:
        """Around a whole request; ApiError (429) where too many are inside."""
        if self.num_inside >= self._most:
            raise self._full(f"{self.num_inside} requests are served or wait already")
        self.num_inside += 1
        ticket = Ticket(self)
        try:
            yield ticket
        finally:
            ticket.hold(0)
            self.num_inside -= 1

    def change_held(self, num_bytes: int) -> None:
        """What requests hold grows or shrinks by that much."""
        if num_bytes > 0 and self._num_bytes + num_bytes > self._max_bytes:
            raise self._full(f"the requests that wait hold {self._num_bytes} bytes already")
        self._num_bytes += num_bytes

    def _full(self, reason: str) -> ApiError:
        message = f"{reason}: try again in {self.retry_after_s} s"
        headers = {"Retry-After": str(self.retry_after_s)}
        return ApiError(message, status=429, code="rate_limit_exceeded", headers=headers)

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Around what takes pictures and the engine: entered in order of arrival."""
        async with self._running:
            started_at = asyncio.get_running_loop().time()
            try:
                yield
            finally:
                seconds = asyncio.get_running_loop().time() - started_at
                self._mean_s += self._smoothing * (seconds - self._mean_s)
