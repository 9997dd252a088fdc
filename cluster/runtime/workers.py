"""Rollout workers as Ray actors, with an adapter that implements the pool's Protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import ray

from actors.engine.budget import check_max_prefill_tokens
from actors.episode import PlayedGroup, SkippedSample
from actors.errors import RolloutError, SampleError, root_cause
from actors.fleet.worker import RolloutWorker
from actors.images import ViewSpec
from actors.play import PlayRequest
from actors.weights.layout import WeightLink, WeightOffer
from cluster.runtime.failures import STORE_FAILURES, await_remote, kind_of, retry_while_unavailable
from cluster.runtime.placement import Placement, actor_options
from configs.schema import Config
from configs.seeds import derive_seed

T = TypeVar("T")


class RayWorker:
    """`fleet.pool.Worker` over a Ray actor. Full views stay in the object store; only references are passed."""

    def __init__(self, name: str, actor: Any, *, num_receivers: int) -> None:
        self.name = name
        self.num_receivers = num_receivers
        self._reaches_learner = True
        self._actor = actor
        self._is_killed = False

    async def ready(self) -> None:
        await self.check_health()

    async def check_health(self) -> None:
        await self._ask(lambda: self._actor.check_health.remote())

    async def serve_loaded_weights(self) -> None:
        await self._ask(lambda: self._actor.serve_loaded_weights.remote())

    async def play(self, request: PlayRequest) -> tuple[PlayedGroup | SkippedSample, Any]:
        async def start() -> tuple[PlayedGroup | SkippedSample, Any]:
            played, image = self._actor.play.options(num_returns=2).remote(request)
            try:
                return await played, image
            except asyncio.CancelledError:
                ray.cancel(played)  # keep the worker, but stop its engine from generating a cancelled group
                raise
            except STORE_FAILURES as error:
                raise SampleError(f"{kind_of(error)}: {root_cause(error)}") from error

        return await self._ask(start)

    async def connect_weights(self, link: WeightLink) -> None:
        self._reaches_learner = await self._ask(lambda: self._actor.connect_weights.remote(link))

    async def receive_weights(self, offer: WeightOffer, read_bucket: Callable[[int], object]) -> None:
        buckets = [] if self._reaches_learner else [read_bucket(index) for index in range(offer.num_buckets)]
        await self._ask(lambda: self._actor.receive_weights.remote(offer, *buckets))

    async def commit_weights(self, version: int, digests: Sequence[int]) -> float:
        return await self._ask(lambda: self._actor.commit_weights.remote(version, tuple(digests)))

    async def disconnect_weights(self) -> None:
        await self._ask(lambda: self._actor.disconnect_weights.remote())

    async def sleep(self) -> None:
        await self._ask(lambda: self._actor.sleep.remote())

    async def shutdown(self) -> None:
        if not self._is_killed:
            await await_remote(self._actor.shutdown.remote(), RolloutError, self.name)

    def kill(self) -> None:
        """End the actor's process, with it the engine's (`actors/engine/owner.py`), and free its CPUs and GPUs."""
        self._is_killed = True
        ray.kill(self._actor)

    async def _ask(self, start: Callable[[], Awaitable[T]]) -> T:
        return await await_remote(retry_while_unavailable(start), RolloutError, self.name)


def start_workers(config: Config, placement: Placement) -> list[RayWorker]:
    """Create the rollout workers on the connected cluster; they start asynchronously.

    Raises:
        ValueError: `rollout.max_prefill_tokens` does not fit the model.
    """
    model = config.model
    spec = ViewSpec.from_model(model.path, min_pixels=model.min_pixels, max_pixels=model.max_pixels)
    check_max_prefill_tokens(config.rollout, spec)
    threads = {} if config.rollout.num_gpus else {"OMP_NUM_THREADS": str(config.rollout.num_threads)}
    actor_class = ray.remote(RolloutWorker).options(**actor_options(placement.worker, threads))
    return [
        RayWorker(
            f"rollout worker {i}",
            actor_class.remote(
                model=config.model,
                rollout=config.rollout,
                data=config.data,
                transport=config.transport,
                in_flight=config.weights.in_flight,
                can_sleep=config.engines_sleep,
                seed=derive_seed(config.run.seed, "rollout worker", i),
            ),
            num_receivers=config.rollout.tensor_parallel_size,
        )
        for i in range(config.rollout.num_workers)
    ]
