"""Prefetching: the next item is prepared while the current one is processed."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch_one(items: Iterable[T], *, timeout_s: float) -> Generator[T, None, None]:
    """Iterate over items in order, each produced by a thread while the caller processes the previous one.

    At most two items exist at a time, the caller's and the next. An exception from producing an item is raised in its
    place, and closing this iterator ends the thread.

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
    """The next item as a one-element list, or an empty list at the end: popping it leaves no other reference."""
    return list(itertools.islice(source, 1))
