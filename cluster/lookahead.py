"""Lets generation run ahead of the learner by a bounded number of versions (0: strictly on-policy).

Batch n (from 0) is trained on with version n. Its production may start once n - depth batches have been requested, so
its samples are at most `depth` steps old. At depth 0 a batch is produced only on request: the strictly on-policy loop
is the same code.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Lookahead(Generic[T]):
    """`take()` returns the batches of `produce()` in order.

    Args:
        num_batches: how many will be taken; no more are produced.
        allow: called with the number of batches whose production may have started, whenever it grows. A producer that
            has not finished a batch may then start on parts of the next.
    """

    def __init__(
        self,
        produce: Callable[[], Awaitable[T]],
        *,
        depth: int,
        num_batches: int,
        allow: Callable[[int], None] = lambda num_batches: None,
    ) -> None:
        self._produce = produce
        self._depth = depth
        self._num_batches = num_batches
        self._allow = allow
        self._num_asked = 0
        self._asked = asyncio.Condition()
        self._ready: asyncio.Queue[T] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    @property
    def _num_allowed(self) -> int:
        """Number of batches whose production may have started."""
        return min(self._num_asked + self._depth, self._num_batches)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="lookahead")
        self._allow(self._num_allowed)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])

    async def take(self) -> T:
        """The next batch. Exceptions of `produce` are raised here; a producer that returns early is also an error."""
        assert self._task is not None, "use `async with`"
        assert self._num_asked < self._num_batches, "all batches have been taken"
        async with self._asked:
            self._num_asked += 1
            self._asked.notify_all()
        self._allow(self._num_allowed)
        ready = asyncio.create_task(self._ready.get())
        try:
            await asyncio.wait([ready, self._task], return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                return ready.result()
            self._task.result()
            raise AssertionError("the producer ended")
        finally:
            ready.cancel()

    async def _run(self) -> None:
        num_started = 0
        while True:
            async with self._asked:
                await self._asked.wait_for(lambda: num_started < self._num_allowed)  # noqa: B023 (awaited here)
            num_started += 1
            await self._ready.put(await self._produce())
