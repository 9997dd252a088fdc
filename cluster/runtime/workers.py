"""Rollout workers as Ray actors, with an adapter that implements the pool's Protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError, RayTaskError

from actors.engine.budget import check_max_prefill_tokens
from actors.episode import PlayedGroup, SkippedSample
from actors.errors import BrokenWorkerError, LostBucketError, RolloutError, SampleError, VisionThinkError, root_cause
from actors.fleet.spare import SpareWorker
from actors.fleet.worker import RolloutWorker
from actors.images import ViewSpec
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
from cluster.runtime.placement import Placement, actor_options
from configs.schema import Config
from configs.seeds import derive_seed

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


class Spares:
    """Actors that stand by with all that a worker imports; whoever is started next is one of them, if it is up.

    Args:
        ask: asks the cluster for one, which may stay pending.
    """

    def __init__(self, ask: Callable[[], Any], number: int) -> None:
        self._ask = ask
        self._number = number
        self._standing_by: list[tuple[Any, Any, Any]] = []
        """Actor, and the calls that end once it is up and once its process has ended."""

    def fill(self) -> None:
        """Ask for as many as are wanted, in place of those that were taken or have died."""
        self._standing_by = [spare for spare in self._standing_by if not _is_done(spare[2])]
        while len(self._standing_by) < self._number:
            actor = self._ask()
            self._standing_by.append((actor, actor.stand_by.remote(), actor.wait_for_ever.remote()))

    def take(self) -> Any | None:
        """An actor that is up; None if none is."""
        for spare in self._standing_by:
            actor, up, ended = spare
            if _is_done(up) and not _is_done(ended):
                self._standing_by.remove(spare)
                return actor
        return None

    def close(self) -> None:
        """End those that stand by."""
        for actor, _, _ in self._standing_by:
            ray.kill(actor)
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
