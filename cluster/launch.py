"""Starts a run on Ray and shuts it down."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.exceptions import RayError

from actors.data.dataset import Dataset, PromptCursor, SkipLedger
from actors.errors import RolloutError, RunError, VisionThinkError
from actors.fleet.pool import RolloutPool
from cluster.checkpoints import Checkpoints, DriverParts
from cluster.collect import Collector
from cluster.display import Display
from cluster.fleet import Fleet
from cluster.folders import CONFIG
from cluster.identity import identify
from cluster.judging.start import judge_checks, start_judges, unique_name
from cluster.judging.watch import JudgeWatch
from cluster.preflight.checks import check_run
from cluster.preflight.warnings import run_warnings
from cluster.records.events import Event, EventLog, OnEvent
from cluster.records.files import run_id, stop_on_full_disk, write_atomically
from cluster.records.journal import Journal
from cluster.runs.lease import Lease, take_lease
from cluster.runs.resuming import check_resumption, find_start, recall
from cluster.runtime.connect import check_address, connect
from cluster.runtime.gauges import RayMetrics
from cluster.runtime.loaded import LoadedWeights
from cluster.runtime.logs import RunLogs
from cluster.runtime.members import Members
from cluster.runtime.nodes import Lookout, cluster_size
from cluster.runtime.placement import Placement, place, wait_for_room
from cluster.runtime.ranks import start_learner
from cluster.runtime.seats import Weights, policy_of
from cluster.runtime.starting import WorkerStarter
from cluster.status.adapters import rank_view, worker_view
from cluster.status.observer import Observer
from cluster.status.scaling import SizeDesk, Sizes, shortage
from cluster.status.views import MemberView
from cluster.timekeeping import RunClock
from cluster.update_stream import UpdateStream
from cluster.weights import WeightChannel
from configs.load import to_yaml
from configs.ranges import Range
from configs.schema import Config, DataConfig
from judge.deployment import count_judges
from learner.group import LearnerGroup

SHUTDOWN_S = 20.0


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
async def launch(
    config: Config, *, resume: bool, display: Display, started_at: float, restart: bool = False
) -> AsyncIterator[Parts]:
    """Start all components of a run, with `resume` from its latest checkpoint; they are shut down on any exit.

    Raises:
        RunError: another driver holds the run, or its folder has one that `restart` should set aside.
        ValueError, JudgeError: the cluster cannot hold the run, or its judge cannot be asked.
        CheckpointError, RolloutError, LearnerError: nothing to resume from, or a component did not start in time.
    """
    folder = Path(config.run.dir) / config.run.name
    await asyncio.to_thread(_check, config, resume=resume, display=display)
    async with contextlib.AsyncExitStack() as cleanup:
        train_set, heldout = _open_sets(config.data)
        held = await _hold(folder, display, cleanup)
        observer = await cleanup.enter_async_context(_observer(config, folder, display))
        resumes = await asyncio.to_thread(find_start, config, resume=resume, restart=restart, display=display)
        logs = _connect(cleanup, display, folder / "logs")
        placement = await _place(config, display)
        pool, learner = _pool(config), _learner(config, placement, observer)
        weights = WeightChannel(learner, pool, timeout_s=config.weights.timeout_s, before_publish=held.check)
        members = _members(config, placement, pool, weights, observer.add_event, lambda: observer.desired("rollouts"))
        app_name = f"judges-{config.run.name}-{run_id(folder)}"  # the next driver of this run finds it
        judges = await start_judges(config, app_name, display, cleanup)
        watch = JudgeWatch(judges, config, warn=display.warn, count_replicas=lambda: count_judges(app_name))
        cleanup.push_async_callback(watch.close)
        _watch(observer, members, learner, watch)
        cleanup.push_async_callback(_shut_down, members, learner)
        await _all_up(config, learner.start(), members, logs)
        prompts = PromptCursor(dataset=config.data.train, num_rows=len(train_set), seed=config.run.seed)
        driver = DriverParts(identity=identify(config, train_set), prompts=prompts, judge_watch=watch)
        checkpoints = _checkpoints(config, learner, driver, observer, display, held)
        cleanup.push_async_callback(checkpoints.close)
        step = await checkpoints.restore() if resumes else 0
        skips = recall(folder, config, step, prompts, display)
        _write_config(folder, config, held)
        updates = UpdateStream(learner, min_groups=config.learner.ranks.maximum)
        fleet = Fleet(rollouts=pool, judges=judges)
        clock = RunClock(started_at)
        yield Parts(
            fleet=fleet,
            learner=learner,
            weights=weights,
            collector=_collector(config, fleet, prompts, skips, watch, weights, updates, step, display),
            updates=updates,
            checkpoints=checkpoints,
            journal=Journal(
                folder,
                config,
                step=step,
                clock=clock,
                judge_watch=watch,
                display=display,
                observer=observer,
                lease=held,
            ),
            heldout=heldout,
            display=display,
        )


def _check(config: Config, *, resume: bool, display: Display) -> None:
    then = [lambda: check_resumption(config, warn=display.warn)] if resume else []
    check_run(config, more=[check_address, *judge_checks(config.judge, display)], then=then)
    for warning in run_warnings(config):
        display.warn(warning)


@contextlib.asynccontextmanager
async def launch_fleet(config: Config, *, display: Display) -> AsyncIterator[Fleet]:
    """Rollout workers and judges without a learner: the policy is the one in `model.path`."""
    more = [check_address, *judge_checks(config.judge, display)]
    await asyncio.to_thread(check_run, config, learns=False, more=more)
    async with contextlib.AsyncExitStack() as cleanup:
        logs = _connect(cleanup, display, None)
        placement = await _place(config, display)
        pool = _pool(config)

        def emit(event: Event) -> None:
            display.say(event.line())

        members = _members(config, placement, pool, LoadedWeights(), emit, lambda: config.rollout.workers)
        judges = await start_judges(config, unique_name("judges-eval"), display, cleanup)
        cleanup.push_async_callback(_shut_down, members)
        await _all_up(config, None, members, logs)
        yield Fleet(rollouts=pool, judges=judges)


def _open_sets(data: DataConfig) -> tuple[Dataset, Dataset]:
    return Dataset.open(data.train, data.columns), Dataset.open(data.heldout, data.columns)


async def _hold(folder: Path, display: Display, cleanup: contextlib.AsyncExitStack) -> Lease:
    """Take the lease on the run until all of it is shut down."""
    held = await asyncio.to_thread(take_lease, folder, say=display.say)
    cleanup.callback(held.release)
    held.report_to(EventLog(folder, say=lambda _: None, warn=lambda _: None).add)  # the error is shown
    return held


def _checkpoints(
    config: Config, learner: LearnerGroup, driver: DriverParts, observer: Observer, display: Display, held: Lease
) -> Checkpoints:
    return Checkpoints(
        config, learner, driver, on_event=observer.add_event, say=display.say, warn=display.warn, before_save=held.check
    )


def _observer(config: Config, folder: Path, display: Display) -> Observer:
    """Status, events, sizes and metrics of a run, from its first moment on."""
    desk = SizeDesk(folder, config, remark=lambda sizes: _lacking(config, sizes))
    return Observer(folder, config, desk=desk, screen=display, publish=RayMetrics(config.run.name))


def _lacking(config: Config, sizes: Sizes) -> str:
    """What sizes will wait for. Never starts Ray, as asking an unconnected one would."""
    with contextlib.suppress(RayError):
        return shortage(config, sizes, ray.cluster_resources()) if ray.is_initialized() else ""
    return ""


def _watch(observer: Observer, members: Members, learner: LearnerGroup, watch: JudgeWatch) -> None:
    def views() -> list[MemberView]:
        now = time.time()
        workers = [worker_view(member, now) for member in members.members()]
        return workers + [rank_view(member, learner.version) for member in learner.members()]

    observer.watch(views, num_judges=lambda: watch.num_replicas)


def _learner(config: Config, placement: Placement, observer: Observer) -> LearnerGroup:
    return start_learner(config, placement, on_event=observer.add_event, desired=lambda: observer.desired("learner"))


def _collector(
    config: Config,
    fleet: Fleet,
    prompts: PromptCursor,
    skips: SkipLedger,
    watch: JudgeWatch,
    weights: WeightChannel,
    updates: UpdateStream,
    step: int,
    display: Display,
) -> Collector:
    """Collects the batches after `step`."""
    return Collector(
        fleet,
        config,
        prompts=prompts,
        skips=skips,
        judge_watch=watch,
        published=weights.published,
        last_step=step,
        on_trained=updates.add if config.streams_updates else None,
        on_group=display.group_done,
        on_batch=display.batch_done,
    )


def _write_config(folder: Path, config: Config, held: Lease) -> None:
    """From here on the run counts as started."""
    held.check()
    with stop_on_full_disk(folder):
        write_atomically(folder / CONFIG, to_yaml(config))


def _connect(cleanup: contextlib.AsyncExitStack, display: Display, folder: Path | None) -> RunLogs:
    """Connect to Ray and collect the logs of its processes: kept in the folder, and read if a component fails."""
    cleanup.enter_context(display)
    connect()
    cleanup.callback(ray.shutdown)
    logs = RunLogs.of_this_job(folder)
    cleanup.callback(logs.close)
    cleanup.enter_context(logs.explain_failures())
    return logs


async def _place(config: Config, display: Display) -> Placement:
    """Where the processes of a run go on this cluster, which must be, or be able to grow, large enough."""
    if (waiting := wait_for_room(config, await asyncio.to_thread(cluster_size))) is not None:
        display.say(waiting)
    return place(config)


def _pool(config: Config) -> RolloutPool:
    return RolloutPool(
        max_groups_in_flight=config.rollout.max_groups_in_flight, group_timeout_s=config.rollout.group_timeout_s
    )


def _members(
    config: Config,
    placement: Placement,
    pool: RolloutPool,
    weights: Weights,
    emit: OnEvent,
    desired: Callable[[], Range],
) -> Members:
    starter = WorkerStarter(config, placement)
    return Members(
        pool,
        weights,
        starter,
        policy_of(config.rollout),
        desired=desired,
        emit=emit,
        look=Lookout(),
        on_close=starter.close,
    )


async def _all_up(config: Config, learner: Awaitable[None] | None, members: Members, logs: RunLogs) -> None:
    """Wait for the learner and for as many members as the run needs, which have deadlines of their own.

    Raises:
        RolloutError: one was late.
        RolloutError, LearnerError, RunError: one failed.
    """
    limit = config.rollout.start_timeout_s + config.rollout.wait_timeout_s
    try:
        async with asyncio.timeout(limit):
            await asyncio.gather(members.up(), *([] if learner is None else [learner]))
    except TimeoutError as error:
        both = "rollout.start_timeout_s + rollout.wait_timeout_s"
        raise RolloutError(f"the run's processes did not start within {both}={limit:g}") from error
    except RayError as error:
        raise RunError(logs.explain(error)) from error
    logs.link()


async def _shut_down(members: Members, learner: LearnerGroup | None = None) -> None:
    """Let engines end their own processes. Whatever does not respond in time is killed with its actor."""
    goodbyes = [members.close()] + ([learner.shutdown()] if learner else [])
    with contextlib.suppress(TimeoutError, VisionThinkError):
        async with asyncio.timeout(SHUTDOWN_S):
            await asyncio.gather(*goodbyes)
