"""Which errors of Ray are failures of a machine, a process or a store, and how a call survives or reports them."""

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
"""An argument or a result could not be kept. The actor lives, and the next call may well pass."""
RAY_BUGS = (
    UserCodeException,
    CrossLanguageError,
    UnserializableException,
    ReferenceCountingAssertionError,
    ActorAlreadyExistsError,
    ActorHandleNotFoundError,
)
"""Errors of Ray that come from a mistake in the code. They stop the run, as every bug does."""
UNAVAILABLE_S = 30.0
"""An actor that cannot be reached is asked again for this long. Ray says by itself when it has died."""
UNAVAILABLE_PAUSE_S = 0.5


def is_ray_failure(error: BaseException) -> bool:
    """Whether a machine, a process or a store failed: each error of Ray but bugs and what the called code raised.

    Ray has no class for these: `NodeDiedError`, `OutOfMemoryError` and `ActorDiedError` have nothing but `RayError` in
    common. What the called code raised is a `RayTaskError`, which can wrap any of them once more.
    """
    if isinstance(error, RayTaskError):
        return is_ray_failure(error.cause)
    # A bare RayError stands in for a cause that cannot be serialised.
    return isinstance(error, RayError) and type(error) is not RayError and not isinstance(error, RAY_BUGS)


async def await_remote(call: Awaitable[T], failure: type[VisionThinkError], what: str) -> T:
    """Await a remote call; a failure of Ray becomes `failure`, what the call itself raised passes."""
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
    """Start a call that may run twice, and again while its actor cannot be reached, for at most UNAVAILABLE_S."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + UNAVAILABLE_S
    while True:
        try:
            return await start()
        except ActorUnavailableError:
            if loop.time() >= give_up_at:
                raise
        await asyncio.sleep(UNAVAILABLE_PAUSE_S)
