"""Rollout workers and learner ranks as Ray actors.

Workers and ranks are plain classes elsewhere. Here each becomes an actor, and each actor gets a small adapter that
speaks the Protocol its pool expects and turns Ray's failures into ours.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayTaskError

from actors.engine.weight_receiver import WeightManifest
from actors.episode import PlayedGroup, SkippedSample
from actors.errors import LearnerError, RolloutError, VisionThinkError, gist
from actors.fleet.worker import RolloutWorker
from actors.play import PlayRequest
from cluster.placement import Placement, Resources
from configs.schema import Config
from learner.group import LearnerGroup

T = TypeVar("T")

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


class RankHost:
    """A learner rank in its actor. PyTorch and DeepSpeed are imported there, not by the driver."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        from learner.worker import LearnerRank

        self._rank = LearnerRank(*args, **settings)

    def call(self, method: str, *args: Any) -> Any:
        return getattr(self._rank, method)(*args)


class RayRank:
    """`learner.group.Rank` over a Ray actor."""

    def __init__(self, actor: Any, rank: int) -> None:
        self._actor = actor
        self._name = f"learner rank {rank}"

    async def call(self, method: str, *args: Any) -> Any:
        return await crossing(self._actor.call.remote(method, *args), LearnerError, self._name)

    def reference(self, method: str, *args: Any) -> Any:
        """Start a call and hand on its result unseen: it goes from actor to actor, never through here."""
        return self._actor.call.remote(method, *args)


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
            rank=rank,
            world_size=world_size,
            seed=config.run.seed,
            temperature=config.rollout.temperature,
            bucket_mib=config.weights.bucket_mib,
        )
        return RayRank(actor, rank)

    return LearnerGroup(config.learner, start_rank)
