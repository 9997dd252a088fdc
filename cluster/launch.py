"""Starts a run on Ray and shuts it down."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from actors.data.dataset import Dataset, PromptCursor, SkipLedger
from actors.errors import CheckpointError, RolloutError, RunError, VisionThinkError
from actors.fleet.pool import RolloutPool
from cluster.checkpoints import Checkpoints, read_state
from cluster.collect import Collector
from cluster.display import Display
from cluster.fleet import Fleet
from cluster.folders import CONFIG
from cluster.identity import check_identity, identify
from cluster.judging.watch import JudgeWatch
from cluster.preflight.checks import Check, check_judge, check_run
from cluster.records.files import lock_run_folder, write_atomically
from cluster.records.journal import Journal
from cluster.runtime.connect import check_address, connect
from cluster.runtime.gauges import RayMetrics
from cluster.runtime.logs import RunLogs
from cluster.runtime.placement import Placement, check_capacity, place
from cluster.runtime.ranks import start_learner
from cluster.runtime.workers import RayWorker, start_workers
from cluster.status.observer import Observer
from cluster.status.scaling import SizeDesk, Sizes, configured_sizes, shortage
from cluster.status.views import MemberView
from cluster.timekeeping import RunClock
from cluster.update_stream import UpdateStream
from cluster.weights import WeightChannel
from configs.judges import JudgeConfig
from configs.load import to_yaml
from configs.paths import resolve_judge_paths
from configs.require import require
from configs.schema import Config
from judge.deployment import count_judges, delete_application, deploy_judges
from judge.llm.cache import open_cache
from judge.llm.client import preflight_judge
from judge.llm.served_model import num_gpus_wanted
from judge.llm.server import served_llm, waker
from judge.llm.version import judge_version
from judge.pool import JudgePool
from learner.checkpoint import list_checkpoints, newest_checkpoint
from learner.group import LearnerGroup

SHUTDOWN_S = 20.0


async def _start_judges(config: Config, name: str, display: Display, cleanup: contextlib.AsyncExitStack) -> JudgePool:
    if not config.judge.has_llm:  # rules judge in this process
        return JudgePool(None, config.judge)
    store = await asyncio.to_thread(open_cache, config.judge, display.warn)
    if store is not None:
        cleanup.callback(store.close)
    judge = await cleanup.enter_async_context(served_llm(config.judge, f"{name}-llm"))
    wake = waker(judge, f"{name}-llm")
    cleanup.callback(delete_application, name)
    handle = await asyncio.to_thread(deploy_judges, judge, name)
    cleanup.callback(handle.close)
    return JudgePool(handle, judge, store=store, judge_version=judge_version(judge), wake=wake, warn=display.warn)


@contextlib.asynccontextmanager
async def llm_in_cluster(config: JudgeConfig) -> AsyncIterator[JudgeConfig]:
    """Start Ray and the LLM of `judge.cluster`, for a command that judges in its own process; yields its config."""
    config = resolve_judge_paths(config)
    check_judge(config, more=[check_address])
    connect()
    try:
        held, wanted = ray.cluster_resources().get("GPU", 0.0), num_gpus_wanted(config)
        remedy = f"the LLM judge needs {wanted:g} GPUs, the cluster has {held:g}"
        require(wanted <= held, "judge.cluster.num_gpus", config.cluster.num_gpus, remedy)
        with RunLogs.of_this_job(None).explain_failures():
            async with served_llm(config, _app_name("llm")) as judge:
                yield judge
    finally:
        ray.shutdown()


def _app_name(name: str) -> str:
    """Several runs may share a cluster."""
    return f"{name}-{secrets.token_hex(3)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The components of a started run, restored if it was resumed."""

    fleet: Fleet
    learner: LearnerGroup
    weights: WeightChannel
    collector: Collector
    updates: UpdateStream
    checkpoints: Checkpoints
    journal: Journal
    heldout: Dataset
    display: Display


@contextlib.asynccontextmanager
async def launch(config: Config, *, resume: bool, display: Display, started_at: float) -> AsyncIterator[Parts]:
    """Start all components of a run, with `resume` from its latest checkpoint; they are shut down on any exit.

    Raises:
        ValueError: the cluster cannot hold the run, or its judge cannot be asked.
        CheckpointError: nothing to resume from.
        RolloutError, LearnerError: a component did not start in time.
    """
    folder = Path(config.run.dir) / config.run.name
    then = [lambda: _check_resumption(config, folder)] if resume else []
    await asyncio.to_thread(check_run, config, more=[check_address, *_judge_checks(config.judge, display)], then=then)
    async with contextlib.AsyncExitStack() as cleanup:
        train_set, heldout = Dataset.open(config.data.train), Dataset.open(config.data.heldout)
        cleanup.enter_context(lock_run_folder(folder))
        observer = await cleanup.enter_async_context(_observer(config, folder, display))
        logs = _connect(cleanup, display, folder / "logs")
        placement = _place(config)
        workers = start_workers(config, placement)
        learner = start_learner(config, placement)
        app_name = _app_name(f"judges-{config.run.name}")
        judges = await _start_judges(config, app_name, display, cleanup)
        cleanup.push_async_callback(_shut_down, workers, learner)
        await _all_up(config, [learner.start(), *(worker.ready() for worker in workers)], logs)
        watch = JudgeWatch(judges, config, warn=display.warn, count_replicas=lambda: count_judges(app_name))
        cleanup.push_async_callback(watch.close)
        prompts = PromptCursor(dataset=config.data.train, num_rows=len(train_set), seed=config.run.seed)
        checkpoints = Checkpoints(
            folder / "checkpoints",
            identity=identify(config, train_set),
            learner=learner,
            prompts=prompts,
            judge_watch=watch,
            keep=config.train.keep_checkpoints,
        )
        step = await _restore(checkpoints, folder, display) if resume else 0
        write_atomically(folder / CONFIG, to_yaml(config))
        fleet = Fleet(rollouts=_pool(config, workers), judges=judges)
        weights = WeightChannel(learner, fleet.rollouts, timeout_s=config.weights.timeout_s)
        updates = UpdateStream(learner, min_groups=config.learner.num_ranks)
        observer.watch(lambda: _members(config, fleet.rollouts, learner), num_judges=lambda: watch.num_replicas)
        clock = RunClock(started_at)
        yield Parts(
            fleet=fleet,
            learner=learner,
            weights=weights,
            collector=_collector(config, fleet, weights, updates, prompts, watch, step, display),
            updates=updates,
            checkpoints=checkpoints,
            journal=Journal(
                folder, config, step=step, clock=clock, judge_watch=watch, display=display, observer=observer
            ),
            heldout=heldout,
            display=display,
        )


def _collector(
    config: Config,
    fleet: Fleet,
    weights: WeightChannel,
    updates: UpdateStream,
    prompts: PromptCursor,
    watch: JudgeWatch,
    step: int,
    display: Display,
) -> Collector:
    """Collects the batches after `step`."""
    return Collector(
        fleet,
        config,
        prompts=prompts,
        skips=SkipLedger(max_skipped_fraction=config.data.max_skipped_fraction),
        judge_watch=watch,
        published=weights.published,
        last_step=step,
        on_trained=updates.add if config.streams_updates else None,
        on_group=display.group_done,
        on_batch=display.batch_done,
    )


@contextlib.asynccontextmanager
async def launch_fleet(config: Config, *, display: Display) -> AsyncIterator[Fleet]:
    """Rollout workers and judges without a learner: the policy is the one in `model.path`."""
    more = [check_address, *_judge_checks(config.judge, display)]
    await asyncio.to_thread(check_run, config, learns=False, more=more)
    async with contextlib.AsyncExitStack() as cleanup:
        logs = _connect(cleanup, display, None)
        workers = start_workers(config, _place(config))
        judges = await _start_judges(config, _app_name("judges-eval"), display, cleanup)
        cleanup.push_async_callback(_shut_down, workers)
        await _all_up(config, [worker.serve_loaded_weights() for worker in workers], logs)
        yield Fleet(rollouts=_pool(config, workers), judges=judges)


def _connect(cleanup: contextlib.AsyncExitStack, display: Display, folder: Path | None) -> RunLogs:
    """Connect to Ray and collect the logs of its processes: kept in the folder, and read if a component fails."""
    cleanup.enter_context(display)
    connect()
    cleanup.callback(ray.shutdown)
    logs = RunLogs.of_this_job(folder)
    cleanup.callback(logs.close)
    cleanup.enter_context(logs.explain_failures())
    return logs


def _observer(config: Config, folder: Path, display: Display) -> Observer:
    """Status, events, sizes and metrics of a run, from its first moment on."""
    is_fixed = dict.fromkeys(("rollouts", "learner"), "this run has members that neither join nor leave")
    desk = SizeDesk(folder, config, fixed=is_fixed, remark=lambda sizes: _lacking(config, sizes))
    return Observer(folder, config, desk=desk, screen=display, publish=RayMetrics(config.run.name))


def _lacking(config: Config, sizes: Sizes) -> str:
    """What sizes will wait for. Never starts Ray, as asking an unconnected one would."""
    with contextlib.suppress(RayError):
        return shortage(config, sizes, ray.cluster_resources()) if ray.is_initialized() else ""
    return ""


def _members(config: Config, rollouts: RolloutPool, learner: LearnerGroup) -> list[MemberView]:
    """All members but the judges."""
    num_ranks = configured_sizes(config)["learner"].minimum
    workers = [MemberView(name=worker.name, role="rollouts", state="serving") for worker in rollouts.workers]
    ranks = [
        MemberView(name=f"learner rank {rank}", role="learner", state="active", version=learner.version)
        for rank in range(num_ranks)
    ]
    return workers + ranks


def _place(config: Config) -> Placement:
    """Where the processes of a run go on this cluster, which must be large enough."""
    check_capacity(config, ray.cluster_resources())
    return place(config)


def _pool(config: Config, workers: Sequence[RayWorker]) -> RolloutPool:
    return RolloutPool(
        workers,
        max_groups_in_flight=config.rollout.max_groups_in_flight,
        group_timeout_s=config.rollout.group_timeout_s,
    )


async def _restore(checkpoints: Checkpoints, folder: Path, display: Display) -> int:
    """Restore the newest valid checkpoint; returns its step, or 0 if the run stopped before its first one."""
    found = newest_checkpoint(folder / "checkpoints")
    for reason in found.rejected:
        display.warn(reason)
    if found.path is None and found.rejected:
        raise CheckpointError(f"{folder} has no valid checkpoint: start a new run without --resume")
    if found.path is None:
        display.say("no checkpoint was written yet: this run starts over")
        return 0
    return await checkpoints.restore(found.path)


async def _all_up(config: Config, starts: Sequence[Awaitable[Any]], logs: RunLogs) -> None:
    """Wait for all components.

    Raises:
        RolloutError: one was late.
        RolloutError, LearnerError, RunError: one failed.
    """
    try:
        async with asyncio.timeout(config.rollout.start_timeout_s):
            await asyncio.gather(*starts)
    except TimeoutError as error:
        limit = config.rollout.start_timeout_s
        raise RolloutError(f"the run's processes did not start within rollout.start_timeout_s={limit:g}") from error
    except RayError as error:
        raise RunError(logs.explain(error)) from error
    logs.link()


def _judge_checks(config: JudgeConfig, display: Display) -> list[Check]:
    """The check of the judge, by one test call; `check_run` itself checks prompt and model folder."""
    return [lambda: asyncio.run(preflight_judge(config, warn=display.warn))]


def _check_resumption(config: Config, folder: Path) -> None:
    """Reject a checkpoint of another run before anything is started."""
    checkpoints = folder / "checkpoints"
    for checkpoint in reversed(list_checkpoints(checkpoints) if checkpoints.is_dir() else []):
        with contextlib.suppress(CheckpointError):  # damaged ones are skipped here as well
            saved = read_state(checkpoint)["identity"]
            break
    else:
        return
    check_identity(saved, identify(config, Dataset.open(config.data.train)))


async def _shut_down(workers: Sequence[RayWorker], learner: LearnerGroup | None = None) -> None:
    """Let engines end their own processes. Whatever does not respond in time is killed with its actor."""
    goodbyes = [worker.shutdown() for worker in workers] + ([learner.shutdown()] if learner else [])
    with contextlib.suppress(TimeoutError, VisionThinkError):
        async with asyncio.timeout(SHUTDOWN_S):
            await asyncio.gather(*goodbyes)
