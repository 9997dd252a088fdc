"""Rollout workers and learner ranks as Ray actors.

Workers and ranks are plain classes elsewhere. Here each becomes an actor, and each actor gets a small adapter that
speaks the Protocol its pool expects and turns Ray's failures into ours.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import (
    ActorAlreadyExistsError,
    ActorHandleNotFoundError,
    ActorUnavailableError,
    CrossLanguageError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    PlasmaObjectNotAvailable,
    RayError,
    RayTaskError,
    ReferenceCountingAssertionError,
    UnserializableException,
    UserCodeException,
)

from actors.engine.budget import check_max_prefill_tokens
from actors.engine.weight_receiver import WeightManifest
from actors.episode import PlayedGroup, SkippedSample
from actors.errors import LearnerError, RolloutError, SampleError, VisionThinkError, gist
from actors.fleet.worker import RolloutWorker
from actors.images import View_HW3, ViewSpec
from actors.play import PlayRequest
from cluster.placement import Placement, Resources
from configs.schema import Config, DataConfig, LearnerConfig, ModelConfig
from configs.seeds import derive_seed
from learner.batch import RankPlan
from learner.group import LearnerGroup
from learner.pictures import Picture, PictureReader
from learner.update import UpdateReport

T = TypeVar("T")
logger = logging.getLogger(__name__)

PICTURE_PATIENCE_S = 30.0
"""Seconds that an update waits, in all, for pictures that the object store does not give."""

STORE_FAILURES = (ObjectLostError, ObjectStoreFullError, OutOfDiskError, PlasmaObjectNotAvailable)
"""An argument or a result could not be kept. The actor lives, and the next call may well pass."""
RAY_BUGS = (
    UserCodeException,
    CrossLanguageError,
    UnserializableException,
    ReferenceCountingAssertionError,
    ActorAlreadyExistsError,
    ActorHandleNotFoundError,
)
"""Errors of Ray that come from a mistake in the code. They stop the run, as every bug does."""
UNAVAILABLE_S = 30.0
"""An actor that cannot be reached is asked again for this long. Ray says by itself when it has died."""
UNAVAILABLE_PAUSE_S = 0.5


def is_ray_failure(error: BaseException) -> bool:
    """Whether a machine, a process or a store failed: each error of Ray but bugs and what the called code raised.

    Ray has no class for these: `NodeDiedError`, `OutOfMemoryError` and `ActorDiedError` have nothing but `RayError` in
    common. What the called code raised is a `RayTaskError`, which can wrap any of them once more.
    """
    if isinstance(error, RayTaskError):
        return is_ray_failure(error.cause)
    # A bare RayError stands in for a cause that cannot be serialised.
    return isinstance(error, RayError) and type(error) is not RayError and not isinstance(error, RAY_BUGS)


async def crossing(call: Awaitable[T], failure: type[VisionThinkError], what: str) -> T:
    """Await a remote call; a failure of Ray becomes `failure`, what the call itself raised passes."""
    try:
        return await call
    except RayError as error:
        if is_ray_failure(error):
            raise failure(f"{what}: {_kind(error)}: {gist(error)}") from error
        if isinstance(error, RayTaskError) and isinstance(error.cause, VisionThinkError | ValueError):
            raise error.cause from error
        raise


def _kind(error: RayError) -> str:
    cause = getattr(error, "cause", None)
    return type(cause if isinstance(cause, RayError) else error).__name__


async def when_reachable(start: Callable[[], Awaitable[T]]) -> T:
    """Start a call that may run twice, and again while its actor cannot be reached, for at most UNAVAILABLE_S."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + UNAVAILABLE_S
    while True:
        try:
            return await start()
        except ActorUnavailableError:
            if loop.time() >= give_up_at:
                raise
        await asyncio.sleep(UNAVAILABLE_PAUSE_S)


class RayWorker:
    """`fleet.pool.Worker` over a Ray actor. Full views stay in the object store; only their references pass here."""

    def __init__(self, name: str, actor: Any) -> None:
        self.name = name
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
                ray.cancel(played)  # the worker stays: its engine must not go on with a group that was given up
                raise
            except STORE_FAILURES as error:
                raise SampleError(f"{_kind(error)}: {gist(error)}") from error

        return await self._ask(start)

    async def prepare_weights(self, manifest: WeightManifest, buckets: Sequence[Any]) -> None:
        await self._ask(lambda: self._actor.prepare_weights.remote(manifest, *buckets))

    async def commit_weights(self, version: int) -> str:
        return await self._ask(lambda: self._actor.commit_weights.remote(version))

    async def shutdown(self) -> None:
        if not self._is_killed:
            await crossing(self._actor.shutdown.remote(), RolloutError, self.name)

    def kill(self) -> None:
        """End the actor's process, with it the engine's (`actors/engine/owner.py`), and free its CPUs and GPUs."""
        self._is_killed = True
        ray.kill(self._actor)

    async def _ask(self, start: Callable[[], Awaitable[T]]) -> T:
        return await crossing(when_reachable(start), RolloutError, self.name)


class FetchedViews:
    """`learner.collate.FullViews` of one update: from the object store, or from the data set where that lost them."""

    def __init__(self, pictures: Sequence[Picture], reader: PictureReader) -> None:
        self._pictures = pictures
        self._reader = reader
        self._patience_s = PICTURE_PATIENCE_S
        self._read_again: dict[int, View_HW3] = {}

    def __getitem__(self, number: int, /) -> View_HW3:
        if number not in self._read_again:
            started = time.monotonic()
            try:
                view: View_HW3 = ray.get(self._pictures[number].handle, timeout=self._patience_s)
            except RayError as error:
                # A store that has hung once is waited for less and less.
                self._patience_s = max(1.0, self._patience_s - (time.monotonic() - started))
                logger.warning("picture %d is cut from the data set again: %s", number, gist(error))
            else:
                return view
            self._read_again[number] = self._reader.read(self._pictures[number])
        return self._read_again[number]


class RankHost:
    """A learner rank in its actor. PyTorch and DeepSpeed are imported there, not by the driver."""

    def __init__(self, learner: LearnerConfig, model: ModelConfig, data: DataConfig, **settings: Any) -> None:
        from learner.worker import LearnerRank

        self._rank = LearnerRank(learner, model, **settings)
        spec = ViewSpec.from_model(model.path, min_pixels=model.min_pixels, max_pixels=model.max_pixels)
        self._reader = PictureReader(spec, data)

    def rendezvous(self) -> tuple[str, int]:
        return self._rank.rendezvous()

    def start(self, address: str, port: int) -> None:
        self._rank.start(address, port)

    def update(self, plan: RankPlan, pictures: Sequence[Picture]) -> UpdateReport:
        """Handles inside `pictures` arrive as references: one that is lost must not fail the call."""
        return self._rank.update(plan, FetchedViews(pictures, self._reader))

    def pack_weights(self) -> WeightManifest | None:
        return self._rank.pack_weights()

    def take_bucket(self, index: int) -> NDArray[np.uint8]:
        return self._rank.take_bucket(index)

    def export_hf(self, folder: str) -> None:
        self._rank.export_hf(folder)

    def save(self, folder: str) -> None:
        self._rank.save(folder)

    def load(self, folder: str) -> int:
        return self._rank.load(folder)

    def shutdown(self) -> None:
        self._rank.shutdown()


class RayRank:
    """`learner.group.Rank` over a Ray actor."""

    def __init__(self, actor: Any, rank: int) -> None:
        self._actor = actor
        self._name = f"learner rank {rank}"

    async def rendezvous(self) -> tuple[str, int]:
        return await self._crossing(self._actor.rendezvous.remote())

    async def start(self, address: str, port: int) -> None:
        await self._crossing(self._actor.start.remote(address, port))

    async def update(self, plan: RankPlan, pictures: Sequence[Picture]) -> UpdateReport:
        return await self._crossing(self._actor.update.remote(plan, pictures))

    async def pack_weights(self) -> WeightManifest | None:
        return await self._crossing(self._actor.pack_weights.remote())

    def take_bucket(self, index: int) -> object:
        return self._actor.take_bucket.remote(index)

    async def export_hf(self, folder: str) -> None:
        await self._crossing(self._actor.export_hf.remote(folder))

    async def save(self, folder: str) -> None:
        await self._crossing(self._actor.save.remote(folder))

    async def load(self, folder: str) -> int:
        return await self._crossing(self._actor.load.remote(folder))

    async def shutdown(self) -> None:
        await self._crossing(self._actor.shutdown.remote())

    async def _crossing(self, call: Awaitable[T]) -> T:
        return await crossing(call, LearnerError, self._name)


def _actor_options(resources: Resources, environment: dict[str, str]) -> dict[str, Any]:
    return {
        "num_cpus": resources.num_cpus,
        "num_gpus": resources.num_gpus,
        "runtime_env": {"env_vars": {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", **environment}},
    }


def start_workers(config: Config, placement: Placement) -> list[RayWorker]:
    """Start the config's rollout workers on the cluster this process is connected to; they come up on their own.

    Raises:
        ValueError: `rollout.max_prefill_tokens` does not fit the model.
    """
    model = config.model
    spec = ViewSpec.from_model(model.path, min_pixels=model.min_pixels, max_pixels=model.max_pixels)
    check_max_prefill_tokens(config.rollout, spec)
    threads = {} if config.rollout.num_gpus else {"OMP_NUM_THREADS": str(config.rollout.num_threads)}
    actor_class = ray.remote(RolloutWorker).options(**_actor_options(placement.worker, threads))
    return [
        RayWorker(
            f"rollout worker {i}",
            actor_class.remote(
                model=config.model,
                rollout=config.rollout,
                data=config.data,
                seed=derive_seed(config.run.seed, "rollout worker", i),
            ),
        )
        for i in range(config.rollout.num_workers)
    ]


def start_learner(config: Config, placement: Placement) -> LearnerGroup:
    environment = {}
    if not config.learner.num_gpus:
        environment = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(config.learner.num_threads)}
    actor_class = ray.remote(RankHost).options(**_actor_options(placement.rank, environment))

    def start_rank(rank: int, world_size: int) -> RayRank:
        actor = actor_class.remote(
            config.learner,
            config.model,
            config.data,
            rank=rank,
            world_size=world_size,
            seed=derive_seed(config.run.seed, "learner"),
            temperature=config.rollout.temperature,
            bucket_mib=config.weights.bucket_mib,
        )
        return RayRank(actor, rank)

    return LearnerGroup(config.learner, start_rank)
