"""Mutual exclusion of generation and weight updates."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class TurnGate:
    """Admits turns, or holds them back while the weights change."""

    def __init__(self) -> None:
        self._num_inside = 0
        self._changed = asyncio.Condition()
        self._closed = False

    @property
    def is_closed(self) -> bool:
        return self._closed

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._closed)
            self._num_inside += 1
        try:
            yield
        finally:
            async with self._changed:
                self._num_inside -= 1
                self._changed.notify_all()

    @contextlib.asynccontextmanager
    async def closed(self, *, drain: bool) -> AsyncIterator[None]:
        """No turn starts until it is left; with `drain` it is entered once no turn is in flight."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._closed)
            self._closed = True
        try:
            if drain:
                async with self._changed:
                    await self._changed.wait_for(lambda: self._num_inside == 0)
            yield
        finally:
            async with self._changed:
                self._closed = False
                self._changed.notify_all()
