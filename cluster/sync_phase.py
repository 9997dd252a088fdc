"""One phase of a weight sync: all participants are asked at the same time, and a failure is put down to one of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Coroutine, Mapping
from typing import Any, TypeVar

from actors.errors import LostBucketError, RolloutError, WeightSyncError

T = TypeVar("T")

GRACE_S = 5.0
"""A member that keeps its own deadline of `weights.timeout_s` reports within this time."""
LEARNER = "the learner"


class PhaseFailed(Exception):
    """One participant failed. `who` is the one at fault, by name."""

    def __init__(self, who: str, cause: BaseException) -> None:
        super().__init__(f"{who}: {cause}")
        self.who, self.cause, self.__cause__ = who, cause, cause


async def together(
    timeout_s: float, calls: Mapping[str, Awaitable[T]], *, is_independent: bool = False
) -> dict[str, T]:
    """The results of all participants by name.

    Args:
        is_independent: nobody waits for anybody else. If several are asked and all of them fail, it is the learner that
            they have in common.

    Raises:
        PhaseFailed: as soon as one of them failed or took more than `timeout_s`.
    """
    tasks = {who: asyncio.create_task(_within(timeout_s + GRACE_S, timeout_s, call)) for who, call in calls.items()}
    try:
        if tasks:
            _, pending = await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_EXCEPTION)
            if pending and is_independent:
                await asyncio.wait(pending, timeout=GRACE_S)
        failures = {who: error for who, task in tasks.items() if task.done() and (error := task.exception())}
        for error in failures.values():
            if not isinstance(error, RolloutError | WeightSyncError):
                raise error
        if failures:
            raise _blame(failures, everybody_failed=is_independent and 1 < len(tasks) == len(failures))
        return {who: task.result() for who, task in tasks.items()}
    finally:
        for task in tasks.values():
            task.cancel()


@contextlib.asynccontextmanager
async def running(calls: Mapping[str, Coroutine[Any, Any, T]]) -> AsyncIterator[dict[str, asyncio.Task[T]]]:
    """Calls that are under way already before `together` asks for their results; whatever happens, none outlives it."""
    tasks = {who: asyncio.create_task(call) for who, call in calls.items()}
    try:
        yield tasks
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)


def _blame(failures: dict[str, BaseException], *, everybody_failed: bool) -> PhaseFailed:
    who, error = next(iter(failures.items()))
    lost = next((error for error in failures.values() if isinstance(error, LostBucketError)), None)
    if lost is not None:
        return PhaseFailed(LEARNER, lost)
    if everybody_failed and all(isinstance(each, WeightSyncError) for each in failures.values()):
        return PhaseFailed(LEARNER, WeightSyncError(f"nobody could take the version; {who}: {error}"))
    return PhaseFailed(who, error)


async def _within(seconds: float, told_s: float, call: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(seconds):
            return await call
    except TimeoutError as error:
        raise WeightSyncError(f"no reply within weights.timeout_s={told_s:g}") from error
