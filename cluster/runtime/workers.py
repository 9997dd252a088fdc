"""The adapter by which a rollout worker in a Ray actor is a worker of the pool's Protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError, RayTaskError

from actors.episode import PlayedGroup, SkippedSample
from actors.errors import BrokenWorkerError, LostBucketError, RolloutError, SampleError, VisionThinkError, root_cause
from actors.play import PlayRequest
from actors.weights.layout import WeightLink, WeightOffer
from cluster.runtime.failures import (
    STORE_FAILURES,
    UNAVAILABLE_PAUSE_S,
    await_remote,
    is_ray_failure,
    kind_of,
    retry_while_unavailable,
)

T = TypeVar("T")


class RayWorker:
    """`fleet.pool.Worker` over a Ray actor. Full views stay in the object store; only references are passed."""

    def __init__(self, name: str, actor: Any, *, num_receivers: int, beginning: Awaitable[None] | None = None) -> None:
        """`beginning`: the call in which a spare becomes this worker."""
        self.name = name
        self.num_receivers = num_receivers
        self.reaches_learner = True
        self._actor = actor
        self._beginning = beginning
        self._is_killed = False

    @property
    def actor_id(self) -> str:
        """Ray's id of the actor, in hexadecimal."""
        return str(self._actor._actor_id.hex())

    async def ready(self) -> None:
        """Return once its engine has generated something.

        Raises:
            BrokenWorkerError: its own code raised an error while it started.
            RolloutError: it died for another reason.
        """
        try:
            await self._begin()
            await self.check_health()
        except RolloutError as error:
            if isinstance(error.__cause__, ActorDiedError) and error.__cause__.actor_init_failed:
                raise BrokenWorkerError(str(error)) from error.__cause__
            raise

    async def _begin(self) -> None:
        if self._beginning is None:
            return
        try:
            await await_remote(self._beginning, RolloutError, self.name)
        except RolloutError:
            raise
        except (RayTaskError, ValueError, VisionThinkError) as error:
            raise BrokenWorkerError(f"{self.name}: {root_cause(error)}") from error

    async def ended(self) -> str:
        """Wait until its process has ended, and return why. A moment without connection is no end."""
        while True:
            try:
                await self._actor.wait_for_ever.remote()
            except ActorUnavailableError:
                await asyncio.sleep(UNAVAILABLE_PAUSE_S)
            except RayError as error:
                if not is_ray_failure(error):
                    raise
                return f"{kind_of(error)}: {root_cause(error)}"

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
        self.reaches_learner = await self._ask(lambda: self._actor.connect_weights.remote(link))

    async def receive_weights(self, offer: WeightOffer, read_bucket: Callable[[int], object]) -> None:
        buckets = [] if self.reaches_learner else [read_bucket(index) for index in range(offer.num_buckets)]

        async def start() -> None:
            try:
                await self._actor.receive_weights.remote(offer, *buckets)
            except RayTaskError as error:
                # The worker answers, but Ray had no arguments for it.
                if buckets and is_ray_failure(error):
                    cause = f"{kind_of(error)}: {root_cause(error)}"
                    raise LostBucketError(f"no bucket for {self.name}: {cause}") from error
                raise

        await self._ask(start)

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
