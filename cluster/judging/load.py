"""`visionthink judge load`: does the judges' pool follow a load."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import TypeAlias

import ray

from actors.errors import JudgeError
from cluster.judging.arrivals import (
    Arrival,
    CallTrace,
    Latency,
    Phase,
    PoolSample,
    Tally,
    overshoot,
    plan_arrivals,
    right_size,
    tally,
    time_to_release,
    time_to_size,
)
from cluster.judging.delayed_judge import Ledger, delayed_judges
from cluster.launch import connect
from configs.judges import JudgeConfig
from judge.chain import make_judge
from judge.deployment import ServeJudgeHandle, count_replicas, delete_application, deploy_judges
from judge.trust.check import percentile
from judge.verdict import Judge, JudgeRequest, check_reply

StartPool: TypeAlias = Callable[
    [JudgeConfig, Callable[[JudgeConfig], Judge]], AbstractAsyncContextManager[tuple[ServeJudgeHandle, str]]
]
"""Settings and a replica's judge -> a pool that is up, and its name; gone on exit."""

SAMPLE_S = 0.2
BUSY_SHARE = (0.2, 0.4, 0.4)
"""Parts of the plan's time: quiet, busy, quiet again."""
QUIET_RATE = 0.1
"""Of the busy rate."""
SPARE_REPLICAS = 3
"""By how many the pool of a load test may grow beyond the right size, so that overshoot would show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """What a load test sends, and what a pool of the right size would be."""

    judge: JudgeConfig
    group_size: int
    latency: Latency
    phases: tuple[Phase, Phase, Phase]
    burst: float
    seed: int

    @property
    def arrivals(self) -> tuple[Arrival, ...]:
        return plan_arrivals(self.phases, burst=self.burst, seed=self.seed)

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)

    @property
    def busy_from_s(self) -> float:
        return self.phases[0].seconds

    @property
    def busy_until_s(self) -> float:
        return self.phases[0].seconds + self.phases[1].seconds

    def size_of(self, phase: Phase) -> int:
        size = right_size(phase.rate, self.latency.mean_s, self.judge.target_ongoing_requests)
        return max(self.judge.min_replicas, size)

    def request(self, group: int) -> JudgeRequest:
        """A group's call; each answer is an id of its own."""
        answers = tuple(f"{group}.{index}" for index in range(self.group_size))
        return JudgeRequest(question=str(group), reference="", predictions=answers)


def plan_load(
    judge: JudgeConfig,
    *,
    group_size: int,
    seconds: float,
    rate: float | None,
    latency: Latency,
    burst: float,
    seed: int,
) -> LoadPlan:
    """Quiet, busy, quiet again. The pool may grow past the right size, so that it can be seen whether it does.

    Args:
        rate: groups per second while busy; None takes what 2.5 replicas at their target serve, so that 3 are right.
    """
    for name, value in (("seconds", seconds), ("latency", latency.median_s), ("rate", 1.0 if rate is None else rate)):
        if value <= 0:
            raise ValueError(f"--{name} {value:g} cannot work: give a number above 0")
    if latency.sigma < 0:
        raise ValueError(f"--sigma {latency.sigma:g} cannot work: give 0 or more")
    if rate is None:
        rate = 2.5 * judge.target_ongoing_requests / latency.mean_s
    rates = (QUIET_RATE * rate, rate, QUIET_RATE * rate)
    before, busy, after = (Phase(seconds=share * seconds, rate=r) for share, r in zip(BUSY_SHARE, rates, strict=True))
    size = right_size(rate, latency.mean_s, judge.target_ongoing_requests)
    room = max(judge.max_replicas, size + SPARE_REPLICAS, judge.min_replicas)
    return LoadPlan(
        judge=replace(judge, max_replicas=room),
        group_size=group_size,
        latency=latency,
        phases=(before, busy, after),
        burst=burst,
        seed=seed,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadTrace:
    """What a pool did under a plan."""

    plan: LoadPlan
    calls: tuple[CallTrace, ...]
    """Those that came back, in the order of their return."""
    samples: tuple[PoolSample, ...]
    errors: tuple[str, ...]
    """One line per call that did not come back with verdicts."""
    tally: Tally

    def figures(self) -> dict[str, object]:
        """For `--json`. Times that never came are null."""
        plan, (_, busy, after) = self.plan, self.plan.phases
        size, waits = plan.size_of(busy), sorted(call.wait_s for call in self.calls)
        beyond = overshoot(self.samples, size=size, since_s=plan.busy_from_s, until_s=plan.busy_until_s)
        return {
            "right_size": size,
            "right_size_s": time_to_size(self.samples, size=size, since_s=plan.busy_from_s),
            "release_s": time_to_release(self.samples, size=plan.size_of(after), since_s=plan.busy_until_s),
            "overshoot": beyond,
            "replicas_max": max((sample.num_running for sample in self.samples), default=0),
            "queue_wait_p50_s": percentile(waits, 0.5),
            "queue_wait_p95_s": percentile(waits, 0.95),
            "num_calls": len(plan.arrivals),
            "num_verdicts": sum(call.num_verdicts for call in self.calls),
            "lost": self.tally.lost,
            "doubled": self.tally.doubled,
        }


@contextlib.asynccontextmanager
async def running_pool(
    judge: JudgeConfig, make: Callable[[JudgeConfig], Judge] = make_judge
) -> AsyncIterator[tuple[ServeJudgeHandle, str]]:
    """A pool on the cluster this process is connected to, with its name; gone on exit."""
    name = f"judge-load-{secrets.token_hex(3)}"
    try:
        handle = await asyncio.to_thread(deploy_judges, judge, name, make=make)
        try:
            yield handle, name
        finally:
            handle.close()
    finally:
        await asyncio.to_thread(delete_application, name)


async def follow_load(
    plan: LoadPlan,
    *,
    on_progress: Callable[[float], None] = lambda at_s: None,
    start_pool: StartPool = running_pool,
) -> LoadTrace:
    """Drive a real pool of delayed judges with the plan.

    Calls go to the pool's handle itself and are tried once: the tries of a `JudgePool` would hide a call that Serve
    loses.

    Args:
        on_progress: told the seconds since the start, many times a second.
        start_pool: brings the pool up; another one than ours is for comparison.
    """
    ledger_name = f"ledger-{secrets.token_hex(3)}"
    ledger = ray.remote(Ledger).options(name=ledger_name, num_cpus=0).remote()
    async with start_pool(plan.judge, delayed_judges(plan.latency, plan.seed, ledger_name)) as (handle, name):
        await ledger.times_judged.remote()
        driver = _Driver(plan, handle)
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(_watch(name, driver, on_progress))
            await driver.run()
            watch.cancel()
        judged = await ledger.times_judged.remote()
    ray.kill(ledger)
    sent = [text for arrival in plan.arrivals for text in plan.request(arrival.group).predictions]
    return LoadTrace(
        plan=plan,
        calls=tuple(driver.calls),
        samples=tuple(driver.samples),
        errors=tuple(driver.errors),
        tally=tally(sent, driver.returned, judged),
    )


class _Driver:
    """Sends the plan's calls at their moments and keeps what comes back."""

    def __init__(self, plan: LoadPlan, handle: ServeJudgeHandle) -> None:
        self._plan = plan
        self._handle = handle
        self.started = time.monotonic()
        self.calls: list[CallTrace] = []
        self.samples: list[PoolSample] = []
        self.errors: list[str] = []
        self.returned: list[str] = []

    def now_s(self) -> float:
        return time.monotonic() - self.started

    async def run(self) -> None:
        async with asyncio.TaskGroup() as calls:
            self.started = time.monotonic()
            for arrival in self._plan.arrivals:
                await asyncio.sleep(max(0.0, arrival.at_s - self.now_s()))
                calls.create_task(self._call(arrival.group))
            await asyncio.sleep(max(0.0, self._plan.seconds - self.now_s()))

    async def _call(self, group: int) -> None:
        request, sent_s = self._plan.request(group), self.now_s()
        try:
            async with asyncio.timeout(self._plan.judge.timeout_s):
                reply = check_reply(await self._handle.grade(request), len(request.predictions))
        except (JudgeError, TimeoutError) as error:
            self.errors.append(f"group {group}: {type(error).__name__}: {error}")
            return
        self.returned += [outcome.reason for outcome in reply.outcomes]
        self.calls.append(
            CallTrace(sent_s=sent_s, done_s=self.now_s(), service_s=reply.service_s, num_verdicts=len(reply.outcomes))
        )


async def _watch(name: str, driver: _Driver, on_progress: Callable[[float], None]) -> None:
    while True:
        size = await asyncio.to_thread(count_replicas, name)
        at_s = driver.now_s()
        if size is not None:
            driver.samples.append(PoolSample(at_s=at_s, num_running=size.num_running, num_starting=size.num_starting))
        on_progress(at_s)
        await asyncio.sleep(SAMPLE_S)


@contextlib.contextmanager
def own_cluster() -> Iterator[None]:
    """The cluster that RAY_ADDRESS names or one of this process. Its Serve may have other tenants: it is left up."""
    connect()
    try:
        yield
    finally:
        ray.shutdown()
