"""Classifies Ray errors (machine, process or object store failed?), retries calls and translates their errors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ray.exceptions import (
    ActorAlreadyExistsError,
    ActorHandleNotFoundError,
    ActorUnavailableError,
    CrossLanguageError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    PlasmaObjectNotAvailable,
    RayError,
    RayTaskError,
    ReferenceCountingAssertionError,
    UnserializableException,
    UserCodeException,
)

from actors.causes import root_cause
from actors.errors import VisionThinkError

T = TypeVar("T")


STORE_FAILURES = (ObjectLostError, ObjectStoreFullError, OutOfDiskError, PlasmaObjectNotAvailable)
"""An argument or a result could not be stored. The actor is alive, and the next call may succeed."""
RAY_BUGS = (
    UserCodeException,
    CrossLanguageError,
    UnserializableException,
    ReferenceCountingAssertionError,
    ActorAlreadyExistsError,
    ActorHandleNotFoundError,
)
"""Ray errors caused by a mistake in the code. They stop the run, as every bug does."""
UNAVAILABLE_S = 30.0
"""How long calls to an unreachable actor are retried. Ray reports by itself when it has died."""
UNAVAILABLE_PAUSE_S = 0.5


def is_ray_failure(error: BaseException) -> bool:
    """Whether a machine, a process or the object store failed: any Ray error except bugs and errors of the called code.

    Ray has no class for these: `NodeDiedError`, `OutOfMemoryError` and `ActorDiedError` share only `RayError`. An error
    of the called code is a `RayTaskError`, which may in turn wrap any of them.
    """
    if isinstance(error, RayTaskError):
        return is_ray_failure(error.cause)
    # A bare RayError stands in for a cause that cannot be serialised.
    return isinstance(error, RayError) and type(error) is not RayError and not isinstance(error, RAY_BUGS)


async def await_remote(call: Awaitable[T], failure: type[VisionThinkError], what: str) -> T:
    """Await a remote call. A Ray failure is raised as `failure`; errors of the called code are raised unchanged."""
    try:
        return await call
    except RayError as error:
        if is_ray_failure(error):
            raise failure(f"{what}: {kind_of(error)}: {root_cause(error)}") from error
        if isinstance(error, RayTaskError) and isinstance(error.cause, VisionThinkError | ValueError):
            raise error.cause from error
        raise


def kind_of(error: RayError) -> str:
    cause = getattr(error, "cause", None)
    return type(cause if isinstance(cause, RayError) else error).__name__


async def retry_while_unavailable(start: Callable[[], Awaitable[T]]) -> T:
    """Start an idempotent call, and retry it for at most UNAVAILABLE_S while its actor cannot be reached."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + UNAVAILABLE_S
    while True:
        try:
            return await start()
        except ActorUnavailableError:
            if loop.time() >= give_up_at:
                raise
        await asyncio.sleep(UNAVAILABLE_PAUSE_S)
