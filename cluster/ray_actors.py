"""Rollout workers and learner ranks as Ray actors.

Workers and ranks are plain classes elsewhere. Here each becomes an actor, and each actor gets a small adapter that
speaks the Protocol its pool expects and turns Ray's failures into ours.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayError, RayTaskError

from actors.engine.weight_receiver import WeightManifest
from actors.episode import PlayedGroup, SkippedSample
from actors.errors import LearnerError, RolloutError, VisionThinkError, gist
from actors.fleet.worker import RolloutWorker
from actors.images import View_HW3, ViewSpec
from actors.play import PlayRequest
from cluster.placement import Placement, Resources
from configs.schema import Config, DataConfig, LearnerConfig, ModelConfig
from learner.batch import RankPlan
from learner.group import LearnerGroup
from learner.pictures import Picture, PictureReader
from learner.update import UpdateReport

T = TypeVar("T")
logger = logging.getLogger(__name__)

PICTURE_PATIENCE_S = 30.0
"""Seconds that an update waits, in all, for pictures that the object store does not give."""

RAY_FAILURES = (RayActorError, ObjectLostError, GetTimeoutError)


async def crossing(call: Awaitable[T], failure: type[VisionThinkError], what: str) -> T:
    """Await a remote call; a dead actor or lost object becomes `failure`, what the call itself raised passes."""
    try:
        return await call
    except RAY_FAILURES as error:
        raise failure(f"{what}: {type(error).__name__}: {gist(error)}") from error
    except RayTaskError as error:
        if isinstance(error.cause, VisionThinkError | ValueError):
            raise error.cause from error
        raise


class RayWorker:
    """`rollout_pool.Worker` over a Ray actor. Full views stay in the object store; only their references pass here."""

    def __init__(self, name: str, actor: Any) -> None:
        self.name = name
        self._actor = actor

    async def ready(self) -> None:
        await crossing(self._actor.check_health.remote(), RolloutError, self.name)

    async def serve_loaded_weights(self) -> None:
        await crossing(self._actor.serve_loaded_weights.remote(), RolloutError, self.name)

    async def play(self, request: PlayRequest) -> tuple[PlayedGroup | SkippedSample, Any]:
        played, image = self._actor.play.options(num_returns=2).remote(request)
        return await crossing(played, RolloutError, self.name), image

    async def prepare_weights(self, manifest: WeightManifest, buckets: Sequence[Any]) -> None:
        await crossing(self._actor.prepare_weights.remote(manifest, *buckets), RolloutError, self.name)

    async def commit_weights(self, version: int) -> str:
        return await crossing(self._actor.commit_weights.remote(version), RolloutError, self.name)

    async def shutdown(self) -> None:
        await crossing(self._actor.shutdown.remote(), RolloutError, self.name)


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
    """Start the config's rollout workers on the cluster this process is connected to; they come up on their own."""
    threads = {} if config.rollout.num_gpus else {"OMP_NUM_THREADS": str(config.rollout.num_threads)}
    actor_class = ray.remote(RolloutWorker).options(**_actor_options(placement.worker, threads))
    return [
        RayWorker(
            f"rollout worker {i}",
            actor_class.remote(
                model=config.model, rollout=config.rollout, data=config.data, seed=config.run.seed * 1000 + i
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
            seed=config.run.seed,
            temperature=config.rollout.temperature,
            bucket_mib=config.weights.bucket_mib,
        )
        return RayRank(actor, rank)

    return LearnerGroup(config.learner, start_rank)
