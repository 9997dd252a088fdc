"""Brings a run up on Ray and takes it down: the only code that knows actors, references and Ray's own errors.

Workers, ranks and judges are plain classes elsewhere. Here each becomes an actor, and each actor gets a small adapter
that speaks the Protocol its pool expects and turns Ray's failures into ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayTaskError

from actors.dataset import Dataset
from actors.episode import PlayedGroup, SkippedSample
from actors.errors import CheckpointError, LearnerError, RolloutError, VisionThinkError, gist
from actors.play import PlayRequest
from actors.rollout_pool import RolloutPool
from actors.rollout_worker import RolloutWorker
from actors.weight_receiver import WeightManifest
from cluster.display import Display
from cluster.evaluate import Players
from cluster.folders import CONFIG
from cluster.placement import Placement, Resources, check_capacity, place
from cluster.recorder import lock_run_folder, write_whole
from cluster.run import Run
from configs.judges import JudgeConfig
from configs.load import to_yaml
from configs.schema import Config
from judge.cache import VerdictCache
from judge.deployment import count_judges, delete_judges, deploy_judges
from judge.llm_server import served_llm
from judge.pool import JudgePool
from judge.prompt import load_wording
from judge.served_model import check_model_folder
from judge.version import judge_version
from learner.checkpoint import newest_checkpoint
from learner.group import LearnerGroup

T = TypeVar("T")

SHUTDOWN_S = 20.0
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


def _start_learner(config: Config, placement: Placement) -> LearnerGroup:
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


def _check_judges(config: JudgeConfig) -> None:
    """Refuse at once what would otherwise come to light when everything else is up.

    Raises:
        ValueError: the wording cannot be used.
        JudgeError: the model folder cannot be served.
    """
    if config.has_llm:
        load_wording(config.llm.prompt)
    if "cluster" in config.chain:
        check_model_folder(Path(config.llm.model))


async def _start_judges(config: Config, name: str, display: Display, cleanup: contextlib.AsyncExitStack) -> JudgePool:
    store = await asyncio.to_thread(_open_store, config.judge)
    if store is not None:
        cleanup.callback(store.close)
    judge = await cleanup.enter_async_context(served_llm(config.judge, f"{name}-llm"))
    cleanup.callback(delete_judges, name)
    handle = await asyncio.to_thread(deploy_judges, judge, name)
    cleanup.callback(handle.close)
    version = judge_version(judge) if judge.has_llm else ""
    return JudgePool(handle, judge, store=store, judge_version=version, warn=display.warn)


@contextlib.asynccontextmanager
async def llm_in_cluster(config: JudgeConfig) -> AsyncIterator[JudgeConfig]:
    """Ray and the LLM of `judge.cluster` for a command that judges in its own process: the config that reaches it."""
    _check_judges(config)
    connect()
    try:
        async with served_llm(config, _app_name("llm")) as judge:
            yield judge
    finally:
        ray.shutdown()


def _open_store(config: JudgeConfig) -> VerdictCache | None:
    return VerdictCache(Path(config.cache).expanduser()) if config.has_llm and config.cache else None


def _app_name(name: str) -> str:
    """Several runs may share a cluster."""
    return f"{name}-{secrets.token_hex(3)}"


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, or the one on this machine, or start one in this process."""
    # At "warning" Ray tells of its token authentication, which is on, at every start.
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="error", namespace="visionthink")


@contextlib.asynccontextmanager
async def launch(config: Config, *, resume: bool, display: Display, started_at: float) -> AsyncIterator[Run]:
    """All parts of a run, restored from its newest checkpoint where `resume` says so; gone on any exit.

    Raises:
        ValueError: the cluster cannot hold the run, or its judge cannot be asked.
        CheckpointError: nothing to resume from.
        RolloutError, LearnerError: a part did not come up in time.
    """
    _check_judges(config.judge)
    folder = Path(config.run.dir) / config.run.name
    async with contextlib.AsyncExitStack() as cleanup:
        train_set, heldout = Dataset.open(config.data.train), Dataset.open(config.data.heldout)
        cleanup.enter_context(lock_run_folder(folder))
        cleanup.enter_context(display)
        connect()
        cleanup.callback(ray.shutdown)
        check_capacity(config, ray.cluster_resources())
        placement = place(config)
        workers = start_workers(config, placement)
        learner = _start_learner(config, placement)
        app_name = _app_name(f"judges-{config.run.name}")
        judges = await _start_judges(config, app_name, display, cleanup)
        cleanup.push_async_callback(_shut_down, workers, learner)
        await _all_up(config, [learner.start(), *(worker.ready() for worker in workers)])
        run = Run(
            config,
            folder,
            rollouts=_pool(config, workers),
            judges=judges,
            learner=learner,
            train_set=train_set,
            heldout=heldout,
            display=display,
            started_at=started_at,
            count_judges=lambda: count_judges(app_name),
        )
        cleanup.push_async_callback(run.judge_watch.close)
        if resume and (checkpoint := _checkpoint(folder, display)):
            await run.restore(checkpoint)
        write_whole(folder / CONFIG, to_yaml(config))
        run.start_recording()
        yield run


@contextlib.asynccontextmanager
async def launch_players(config: Config, *, display: Display) -> AsyncIterator[Players]:
    """Rollout workers and judges without a learner: the policy is the one in `model.path`."""
    _check_judges(config.judge)
    async with contextlib.AsyncExitStack() as cleanup:
        cleanup.enter_context(display)
        heldout = Dataset.open(config.data.heldout)
        connect()
        cleanup.callback(ray.shutdown)
        check_capacity(config, ray.cluster_resources())
        workers = start_workers(config, place(config))
        judges = await _start_judges(config, _app_name("judges-eval"), display, cleanup)
        cleanup.push_async_callback(_shut_down, workers)
        await _all_up(config, [worker.serve_loaded_weights() for worker in workers])
        yield Players(rollouts=_pool(config, workers), judges=judges, display=display, heldout=heldout)


def _pool(config: Config, workers: Sequence[RayWorker]) -> RolloutPool:
    return RolloutPool(
        workers,
        max_groups_in_flight=config.rollout.max_groups_in_flight,
        group_timeout_s=config.rollout.group_timeout_s,
        sync_timeout_s=config.weights.timeout_s,
    )


def _checkpoint(folder: Path, display: Display) -> Path | None:
    """The checkpoint to go on from; None for a run that was stopped before its first one, which starts over."""
    found = newest_checkpoint(folder / "checkpoints")
    for reason in found.rejected:
        display.warn(reason)
    if found.path is None and found.rejected:
        raise CheckpointError(f"{folder} holds no checkpoint that verifies: start it anew without --resume")
    if found.path is None:
        display.say("no checkpoint was written yet: this run starts over")
    return found.path


async def _all_up(config: Config, starts: Sequence[Awaitable[Any]]) -> None:
    try:
        async with asyncio.timeout(config.rollout.start_timeout_s):
            await asyncio.gather(*starts)
    except TimeoutError as error:
        limit = config.rollout.start_timeout_s
        raise RolloutError(f"the run's parts were not up within rollout.start_timeout_s={limit:g}") from error


async def _shut_down(workers: Sequence[RayWorker], learner: LearnerGroup | None = None) -> None:
    """Let engines end their own processes. What does not answer in time goes with its actor."""
    goodbyes = [worker.shutdown() for worker in workers] + ([learner.shutdown()] if learner else [])
    with contextlib.suppress(TimeoutError, VisionThinkError):
        async with asyncio.timeout(SHUTDOWN_S):
            await asyncio.gather(*goodbyes)


def launcher(*, resume: bool, display: Display, started_at: float | None = None) -> Callable[[Config], Any]:
    """`launch` with everything but the config filled in."""
    at = time.monotonic() if started_at is None else started_at
    return lambda config: launch(config, resume=resume, display=display, started_at=at)
