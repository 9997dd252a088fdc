"""All rollout workers as one: groups go to the least loaded, weights to every one.

Knows its workers by a Protocol alone. A group whose worker fails is played once more elsewhere, under the next attempt
number; a worker that fails or misses a sync is dropped, and the run goes on while one is left.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from actors.engine.weight_receiver import WeightManifest
from actors.episode import PlayedGroup, SkippedSample
from actors.errors import RolloutError, WeightSyncError
from actors.play import PlayRequest

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 2


class Worker(Protocol):
    """A rollout worker, wherever it runs. All failures of worker or engine are RolloutError."""

    @property
    def name(self) -> str: ...

    async def play(self, request: PlayRequest) -> tuple[PlayedGroup | SkippedSample, Any]:
        """The group, and a handle of its full view."""

    async def prepare_weights(self, manifest: WeightManifest, buckets: Sequence[Any]) -> None: ...

    async def commit_weights(self, version: int) -> str: ...


class RolloutPool:
    """Routes groups and weights. `group_timeout_s` bounds one attempt, `sync_timeout_s` one version's way to all."""

    def __init__(
        self, workers: Sequence[Worker], *, max_groups_in_flight: int, group_timeout_s: float, sync_timeout_s: float
    ) -> None:
        self._num_in_flight: dict[Worker, int] = dict.fromkeys(workers, 0)
        self._max_groups_in_flight = max_groups_in_flight
        self._group_timeout_s = group_timeout_s
        self._sync_timeout_s = sync_timeout_s
        self._waiting: deque[asyncio.Future[Worker | None]] = deque()
        self.version = -1

    @property
    def num_workers(self) -> int:
        return len(self._num_in_flight)

    async def play(self, request: PlayRequest) -> tuple[PlayedGroup | SkippedSample, Any]:
        """Play one group on the least loaded worker, and once more on another should that one fail.

        Raises:
            RolloutError: both attempts failed, or no worker is left.
        """
        failures: list[str] = []
        while len(failures) < MAX_ATTEMPTS:
            worker = await self._acquire(is_first=not failures)
            try:
                async with asyncio.timeout(self._group_timeout_s):
                    return await worker.play(dataclasses.replace(request, attempt=request.attempt + len(failures)))
            except (RolloutError, TimeoutError) as error:
                cause = str(error) or f"no reply within rollout.group_timeout_s={self._group_timeout_s:g}"
                failures.append(f"{worker.name}: {cause}")
                self._drop(worker, cause)
            finally:
                self._release(worker)
        raise RolloutError(f"sample {request.ref.uid} failed on every attempt: {'; '.join(failures)}")

    async def publish(self, manifest: WeightManifest, buckets: Sequence[Any]) -> None:
        """Bring every worker to this version: prepare all, then commit all. Who fails or is late is dropped.

        Raises:
            WeightSyncError: no worker holds the version.
        """
        ready = await self._sync(list(self._num_in_flight), "prepare", manifest, buckets)
        current = await self._sync(ready, "commit", manifest, buckets)
        if not current or not self._num_in_flight:
            raise WeightSyncError(f"version {manifest.version} reached no rollout worker")
        self.version = manifest.version

    async def _sync(
        self, workers: list[Worker], phase: str, manifest: WeightManifest, buckets: Sequence[Any]
    ) -> list[Worker]:
        async def one(worker: Worker) -> bool:
            try:
                async with asyncio.timeout(self._sync_timeout_s):
                    if phase == "prepare":
                        await worker.prepare_weights(manifest, buckets)
                    else:
                        digest = await worker.commit_weights(manifest.version)
                        if digest != manifest.digest:
                            raise WeightSyncError(f"digest {digest[:12]}, expected {manifest.digest[:12]}")
            except (RolloutError, WeightSyncError, TimeoutError) as error:
                self._drop(worker, f"{phase} of version {manifest.version}: {error or 'deadline passed'}")
                return False
            return True

        kept = await asyncio.gather(*(one(worker) for worker in workers))
        return [worker for worker, is_kept in zip(workers, kept, strict=True) if is_kept]

    async def _acquire(self, *, is_first: bool) -> Worker:
        """A worker with room. Who asked first gets it first, and who lost one before all others: a batch never waits
        for groups of the next."""
        turn: asyncio.Future[Worker | None] = asyncio.get_running_loop().create_future()
        if is_first:
            self._waiting.append(turn)
        else:
            self._waiting.appendleft(turn)
        self._hand_out()
        try:
            worker = await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and (unused := turn.result()) is not None:
                self._release(unused)
            raise
        if worker is None:
            raise RolloutError("no rollout worker is left")
        return worker

    def _hand_out(self) -> None:
        """Give what is free to those who wait, oldest first; None to all of them when no worker is left."""
        while self._waiting:
            worker = self._least_loaded()
            if worker is None and self._num_in_flight:
                return
            turn = self._waiting.popleft()
            if turn.done():  # cancelled
                continue
            if worker is not None:
                self._num_in_flight[worker] += 1
            turn.set_result(worker)

    def _least_loaded(self) -> Worker | None:
        free = [worker for worker, num in self._num_in_flight.items() if num < self._max_groups_in_flight]
        return min(free, key=self._num_in_flight.__getitem__, default=None)

    def _release(self, worker: Worker) -> None:
        if worker in self._num_in_flight:
            self._num_in_flight[worker] -= 1
        self._hand_out()

    def _drop(self, worker: Worker, cause: str) -> None:
        if self._num_in_flight.pop(worker, None) is not None:
            logger.warning("rollout worker %s dropped: %s", worker.name, cause)
        self._hand_out()
