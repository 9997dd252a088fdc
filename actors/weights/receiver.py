"""Which version an engine serves (rule E of the reliability rules).

A version is announced, received, compared by checksum and committed. Whoever receives is wholly on the old version or
wholly on the new one; one that is neither says STALE and plays no group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

from actors.errors import WeightSyncError
from actors.weights.layout import WeightLink, WeightOffer


class SyncState(StrEnum):
    STALE = "stale"
    """Has no verified version: generates nothing until a sync succeeds."""
    CURRENT = "current"
    """Has the complete, verified `version`."""


class WeightTarget(Protocol):
    """The part of an engine that weight sync needs. Its methods raise WeightSyncError if they fail or take too long."""

    @property
    def is_staged(self) -> bool:
        """Whether a version arrives beside the weights in use, which stay whole until it is committed."""

    async def connect_weights(self, link: WeightLink) -> None:
        """Join the learner."""

    async def receive_weights(self, offer: WeightOffer) -> None:
        """Receive a version. Generation goes on if it is staged, and stands still until the commit if not."""

    async def commit_weights(self, version: int, digests: Sequence[int]) -> float:
        """Serve the received version, if its digests are these.

        Returns the seconds for which nothing could be generated.
        """

    async def disconnect_weights(self) -> None:
        """Leave the learner, whatever is under way."""


class WeightReceiver:
    """Updates one engine from version to version, one call after the other.

    A caller that gave up may ask anew while its last call is still under way: only `disconnect` does not wait for it.
    """

    def __init__(self, target: WeightTarget) -> None:
        self._target = target
        self._received: int | None = None
        self._is_replacing = False
        self._one_at_a_time = asyncio.Lock()
        self.state = SyncState.STALE
        self.version = -1

    @property
    def takes_groups(self) -> bool:
        """Whether groups may arrive: the engine is CURRENT, or holds their turns back while a version replaces it."""
        return self.state is SyncState.CURRENT or self._is_replacing

    def accept_loaded_weights(self) -> None:
        """Accept the weights that the engine loaded from disk as version 0."""
        self.state, self.version = SyncState.CURRENT, 0

    def invalidate(self) -> None:
        """The engine has given its weights up; the next version that is committed makes it CURRENT again."""
        self.state = SyncState.STALE

    async def connect(self, link: WeightLink) -> None:
        async with self._one_at_a_time:
            self._received = None
            await self._target.connect_weights(link)

    async def disconnect(self) -> None:
        """Leave the learner, which ends what waits for it."""
        self._received = None
        await self._target.disconnect_weights()

    async def receive(self, offer: WeightOffer) -> None:
        """Receive a version. If that fails, a staged engine keeps the one in use, and any other turns STALE."""
        async with self._one_at_a_time:
            self._received = None
            if not self._target.is_staged:
                self._is_replacing, self.state = self.takes_groups, SyncState.STALE
            try:
                await self._target.receive_weights(offer)
                self._received = offer.version
            finally:
                self._is_replacing = self._is_replacing and self._received is not None

    async def commit(self, version: int, digests: Sequence[int]) -> float:
        """Serve the received version; returns the seconds of the pause.

        Returns at once if the version is served already: a caller that missed the answer asks again.

        Raises:
            WeightSyncError: another version was received, or other bytes than were sent. The engine is then STALE.
        """
        async with self._one_at_a_time:
            if self.state is SyncState.CURRENT and self.version == version and self._received is None:
                return 0.0
            return await self._commit(version, digests)

    async def _commit(self, version: int, digests: Sequence[int]) -> float:
        if self._received != version:
            raise WeightSyncError(f"commit of version {version}, but version {self._received} was received")
        self._received = None
        state = SyncState.STALE
        try:
            # Groups keep arriving meanwhile; the engine holds their turns back, so none is rejected.
            pause_s = await self._target.commit_weights(version, digests)
            state, self.version = SyncState.CURRENT, version
        finally:
            self._is_replacing, self.state = False, state
        return pause_s
