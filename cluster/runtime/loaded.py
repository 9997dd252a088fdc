"""The weights of a run without a learner: each engine serves those that it loaded from disk, as version 0."""

from __future__ import annotations

from collections.abc import Callable

from actors.fleet.pool import Worker
from cluster.runtime.workers import RayWorker


class LoadedWeights:
    """`cluster.runtime.seats.Weights` that need no learner."""

    version = 0

    def __init__(self) -> None:
        self.on_drop: Callable[[Worker, str], None] = lambda worker, cause: None
        self._confirmed: set[Worker] = set()

    def join(self, worker: Worker) -> None: ...

    def leave(self, worker: Worker) -> None: ...

    def confirmed(self, worker: Worker) -> int | None:
        return self.version if worker in self._confirmed else None

    async def catch_up(self, worker: Worker, say: Callable[[str], None]) -> None:
        assert isinstance(worker, RayWorker)
        await worker.serve_loaded_weights()
        self._confirmed.add(worker)
