"""Learner ranks as Ray actors, and the images that an update reads."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import (
    RayError,
)

from actors.errors import LearnerError, root_cause
from actors.images import View_HW3, ViewSpec
from actors.weights.layout import SentWeights, WeightLink
from cluster.runtime.failures import await_remote
from cluster.runtime.placement import Placement, actor_options
from configs.learner import LearnerConfig
from configs.schema import Config, DataConfig, ModelConfig
from configs.seeds import derive_seed
from learner.group import LearnerGroup
from learner.pictures import Picture, PictureReader
from learner.plan import RankPlan
from learner.share_files import WrittenShare
from learner.update import UpdateReport

T = TypeVar("T")
logger = logging.getLogger(__name__)
PICTURE_PATIENCE_S = 30.0
"""Total seconds that a part of an update waits for images that the object store does not deliver."""


class FetchedViews:
    """`learner.collate.FullViews` of a plan: from the object store, or from the data set if the store lost them."""

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
                # After a hang, wait less for the store.
                self._patience_s = max(1.0, self._patience_s - (time.monotonic() - started))
                logger.warning("image %d is read from the data set again: %s", number, root_cause(error))
            else:
                return view
            self._read_again[number] = self._reader.read(self._pictures[number])
        return self._read_again[number]


SAVING = "saving"
"""Concurrency group of the calls that save a snapshot beside an update."""


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

    def begin(self) -> None:
        self._rank.begin()

    def learn(self, plan: RankPlan, pictures: Sequence[Picture]) -> int:
        """Handles in `pictures` are passed as references, so that a lost one does not fail the call."""
        return self._rank.learn(plan, FetchedViews(pictures, self._reader))

    def finish(self) -> UpdateReport:
        return self._rank.finish()

    def open_weights(self, num_receivers: int) -> WeightLink:
        return self._rank.open_weights(num_receivers)

    def join_weights(self) -> None:
        self._rank.join_weights()

    def send_weights(self) -> SentWeights | None:
        return self._rank.send_weights()

    def read_weights(self, bucket: int) -> NDArray[np.uint8]:
        return self._rank.read_weights(bucket)

    def release_weights(self) -> None:
        self._rank.release_weights()

    def close_weights(self) -> None:
        self._rank.close_weights()

    def export_hf(self, folder: str) -> None:
        self._rank.export_hf(folder)

    def snapshot(self) -> None:
        self._rank.snapshot()

    def begin_save(self, url: str, folder: str, optimizer_step: int) -> None:
        self._rank.begin_save(url, folder, optimizer_step)

    def finish_save(self, timeout_s: float) -> WrittenShare:
        return self._rank.finish_save(timeout_s)

    def load(self, url: str, folder: str) -> int:
        return self._rank.load(url, folder)

    def shutdown(self) -> None:
        self._rank.shutdown()


class RayRank:
    """`learner.group.Rank` over a Ray actor."""

    def __init__(self, actor: Any, rank: int) -> None:
        self._actor = actor
        self._name = f"learner rank {rank}"

    async def rendezvous(self) -> tuple[str, int]:
        return await self._await_remote(self._actor.rendezvous.remote())

    async def start(self, address: str, port: int) -> None:
        await self._await_remote(self._actor.start.remote(address, port))

    async def begin(self) -> None:
        await self._await_remote(self._actor.begin.remote())

    async def learn(self, plan: RankPlan, pictures: Sequence[Picture]) -> int:
        return await self._await_remote(self._actor.learn.remote(plan, pictures))

    async def finish(self) -> UpdateReport:
        return await self._await_remote(self._actor.finish.remote())

    async def open_weights(self, num_receivers: int) -> WeightLink:
        return await self._await_remote(self._actor.open_weights.remote(num_receivers))

    async def join_weights(self) -> None:
        await self._await_remote(self._actor.join_weights.remote())

    async def send_weights(self) -> SentWeights | None:
        return await self._await_remote(self._actor.send_weights.remote())

    def read_weights(self, bucket: int) -> object:
        return self._actor.read_weights.remote(bucket)

    async def release_weights(self) -> None:
        await self._await_remote(self._actor.release_weights.remote())

    async def close_weights(self) -> None:
        await self._await_remote(self._actor.close_weights.remote())

    async def export_hf(self, folder: str) -> None:
        await self._await_remote(self._actor.export_hf.remote(folder))

    async def snapshot(self) -> None:
        await self._await_remote(self._actor.snapshot.remote())

    async def begin_save(self, url: str, folder: str, optimizer_step: int) -> None:
        method = self._actor.begin_save.options(concurrency_group=SAVING)
        await self._await_remote(method.remote(url, folder, optimizer_step))

    async def finish_save(self, timeout_s: float) -> WrittenShare:
        return await self._await_remote(self._actor.finish_save.options(concurrency_group=SAVING).remote(timeout_s))

    async def load(self, url: str, folder: str) -> int:
        return await self._await_remote(self._actor.load.remote(url, folder))

    async def shutdown(self) -> None:
        await self._await_remote(self._actor.shutdown.remote())

    async def _await_remote(self, call: Awaitable[T]) -> T:
        return await await_remote(call, LearnerError, self._name)


def start_learner(config: Config, placement: Placement) -> LearnerGroup:
    environment = {}
    if not config.learner.num_gpus:
        environment = {
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": str(config.learner.num_threads),
            # By default a thread that waits for another spins, and keeps the core from it where others want cores too.
            "OMP_WAIT_POLICY": "PASSIVE",
        }
    # Given where the actor class is made: `options` does not take concurrency groups.
    actor_class = ray.remote(concurrency_groups={SAVING: 2})(RankHost).options(
        **actor_options(placement.rank, environment)
    )

    def start_rank(rank: int, world_size: int) -> RayRank:
        actor = actor_class.remote(
            config.learner,
            config.model,
            config.data,
            rank=rank,
            world_size=world_size,
            seed=derive_seed(config.run.seed, "learner"),
            temperature=config.rollout.temperature,
            weights=config.weights,
            transport=config.transport,
            is_off_policy=config.train.max_staleness > 0,
        )
        return RayRank(actor, rank)

    return LearnerGroup(config.learner, start_rank)
