"""Starts rollout workers as Ray actors, and keeps the spares that take the place of lost ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import ray

from actors.engine.budget import check_max_prefill_tokens
from actors.fleet.spare import SpareWorker
from actors.fleet.worker import RolloutWorker
from actors.images import ViewSpec
from cluster.runtime.placement import Placement, actor_options
from cluster.runtime.workers import RayWorker
from configs.schema import Config
from configs.seeds import derive_seed


class _Spare(NamedTuple):
    """An actor, and the calls that end once it is up and once its process has ended."""

    actor: Any
    up: Any
    ended: Any


class Spares:
    """Actors that stand by with all that a worker imports; whoever is started next is one of them, if it is up.

    Args:
        ask: asks the cluster for one, which may stay pending.
    """

    def __init__(self, ask: Callable[[], Any], number: int) -> None:
        self._ask = ask
        self._number = number
        self._standing_by: list[_Spare] = []

    def fill(self) -> None:
        """Ask for as many as are wanted, in place of those that were taken or have died."""
        self._standing_by = [spare for spare in self._standing_by if not _is_done(spare.ended)]
        while len(self._standing_by) < self._number:
            actor = self._ask()
            self._standing_by.append(_Spare(actor, up=actor.stand_by.remote(), ended=actor.wait_for_ever.remote()))

    def take(self) -> Any | None:
        """An actor that is up; None if none is."""
        for spare in self._standing_by:
            if _is_done(spare.up) and not _is_done(spare.ended):
                self._standing_by.remove(spare)
                return spare.actor
        return None

    def close(self) -> None:
        """End those that stand by."""
        for spare in self._standing_by:
            ray.kill(spare.actor)
        self._standing_by = []


def _is_done(call: Any) -> bool:
    return bool(ray.wait([call], timeout=0)[0])


class WorkerStarter:
    """Creates workers on the connected cluster, and the spares of a fleet.

    Raises:
        ValueError: `rollout.max_prefill_tokens` does not fit the model.
    """

    def __init__(self, config: Config, placement: Placement) -> None:
        check_max_prefill_tokens(config.rollout, ViewSpec.from_model(config.model))
        threads = {} if config.rollout.num_gpus else {"OMP_NUM_THREADS": str(config.rollout.num_threads)}
        options = actor_options(placement.worker, threads)
        self._settings: dict[str, Any] = {
            "model": config.model,
            "rollout": config.rollout,
            "data": config.data,
            "transport": config.transport,
            "in_flight": config.weights.in_flight,
            "can_sleep": config.engines_sleep,
        }
        self._config = config
        self._worker_class, spare_class = (ray.remote(each).options(**options) for each in (RolloutWorker, SpareWorker))
        self._spares = Spares(lambda: spare_class.remote(**self._settings), config.rollout.num_spares)
        self._num_started = 0

    def __call__(self, slot: int, attempt: int) -> RayWorker:
        """A worker that is starting, for a slot of the fleet in which `attempt` others were started before it."""
        rollout = self._config.rollout
        seed = derive_seed(self._config.run.seed, "rollout worker", slot, *([attempt] if attempt else []))
        actor, beginning = self._spares.take(), None
        if actor is not None:
            beginning = actor.begin.remote(seed)
        else:
            actor = self._worker_class.remote(**self._settings, seed=seed)
        self._num_started += 1
        if self._num_started >= rollout.workers.maximum:  # workers come before spares where room is short
            self._spares.fill()
        return RayWorker(
            f"rollout worker {slot}", actor, num_receivers=rollout.tensor_parallel_size, beginning=beginning
        )

    def close(self) -> None:
        """End the spares."""
        self._spares.close()


def start_workers(config: Config, placement: Placement) -> list[RayWorker]:
    """Create the workers of a fleet that stays as it is; they start asynchronously."""
    start = WorkerStarter(config, placement)
    return [start(slot, 0) for slot in range(config.rollout.workers.maximum)]
