"""Preparing the next item while the present one is worked on."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def one_ahead(items: Iterable[T], *, timeout_s: float) -> Generator[T, None, None]:
    """The items in their order, each made by a thread while the caller works with the one before it.

    Two items exist at a time, the caller's and the next. What making an item raises is raised here in its place, and
    closing this iterator ends the thread.

    Raises:
        TimeoutError: an item took longer than `timeout_s`.
    """
    source = iter(items)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="one-ahead") as thread:
        following = thread.submit(_take, source)
        while item := following.result(timeout=timeout_s):
            following = thread.submit(_take, source)
            yield item.pop()


def _take(source: Iterator[T]) -> list[T]:
    """The next item in a list of its own, or an empty list at the end: whoever pops it holds the only reference."""
    return list(itertools.islice(source, 1))
