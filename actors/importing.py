"""Much is imported before a member can work, on cores that others work on: less of it, or when they leave time."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

LOWEST_PRIORITY = 19


def in_background(work: Callable[[], T]) -> T:
    """Do this in a thread of the lowest priority, and wait for it.

    On Linux every thread has a priority of its own. Without privileges it cannot be raised again; that of the caller
    stays as it is.
    """

    def do() -> T:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
        return work()

    with ThreadPoolExecutor(1, thread_name_prefix="background") as threads:
        return threads.submit(do).result()


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """Imports make a million objects and leave no cycles: looking for some takes a fifth of their time.

    Afterwards, all that is there counts as permanent: a later collection would look through it for half a second.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def without(module: str) -> Iterator[None]:
    """Within, this module counts as not installed, unless it is imported already: whoever can do without it does."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
