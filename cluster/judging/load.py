"""`visionthink judge load`: does the judge pool scale with the load, within the limits of a run?

By Little's law a rate of calls per second that each take `mean_s` keeps rate * mean_s calls under way; the pool is of
the right size when these make up its target per replica. What the limits hold back counts as not sent.
"""

from __future__ import annotations

import asyncio
import math
import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from configs.judges import JudgeConfig
from judge.deployment import PoolSize, count_replicas, delete_application, deploy_judges
from judge.pool import JudgePool
from judge.verdict import JudgeRequest, NoVerdict, Outcome, Usage, Verdict

SAMPLE_S = 0.2
SIGMA = 0.5  # standard deviation of the logarithm of a call's seconds, about that of an LLM endpoint
QUIET_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayedJudge:
    """Simulates an LLM judge: log-normal latency per prediction, then the verdict correct."""

    median_s: float
    seed: int

    @property
    def mean_s(self) -> float:
        return self.median_s * math.exp(SIGMA**2 / 2)

    def delay_s(self, prediction: str) -> float:
        """Latency of a prediction, the same in every process."""
        return self.median_s * math.exp(SIGMA * random.Random(f"{self.seed}/{prediction}").gauss(0.0, 1.0))

    async def grade(self, request: JudgeRequest) -> list[Outcome]:
        await asyncio.sleep(max(self.delay_s(prediction) for prediction in request.predictions))
        verdict = Verdict(is_correct=True, judge="delayed", reason="", usage=Usage(num_calls=1))
        return [verdict for _ in request.predictions]

    def make(self, config: JudgeConfig) -> DelayedJudge:
        """Factory for the replicas."""
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """A load test (idle, busy, idle again) and the pool size it needs."""

    judge: JudgeConfig
    group_size: int
    delayed: DelayedJudge
    rate: float
    """Groups per second while busy."""
    seconds: float

    @property
    def busy(self) -> tuple[float, float]:
        """Start and end of the busy phase, in seconds after the start."""
        return 0.2 * self.seconds, 0.6 * self.seconds

    def share_at(self, at_s: float) -> float:
        """Fraction of the busy rate."""
        return 1.0 if self.busy[0] <= at_s < self.busy[1] else QUIET_SHARE

    def size_at(self, at_s: float) -> int:
        """Replicas needed to have `target_ongoing_requests` concurrent calls each."""
        calls_per_s = self.share_at(at_s) * self.rate * self.group_size
        under_way = min(calls_per_s, self.judge.llm.requests_per_minute / 60 or math.inf) * self.delayed.mean_s
        size = max(1, math.ceil(under_way / self.judge.target_ongoing_requests - 1e-9))
        return max(self.judge.min_replicas, min(self.judge.max_replicas, size))

    def arrivals(self) -> list[float]:
        """Poisson arrival times of groups; deterministic in the seed."""
        chance, at_s, times = random.Random(self.delayed.seed), 0.0, []
        while (at_s := at_s + chance.expovariate(self.rate)) < self.seconds:
            times += [at_s] if chance.random() < self.share_at(at_s) else []
        return times


def plan_load(
    judge: JudgeConfig, *, group_size: int, seconds: float, rate: float | None, latency_s: float, seed: int
) -> LoadPlan:
    """A load on the configured pool, its LLM replaced by a delayed judge; `rate` None wants all of its replicas."""
    for name, value in (("seconds", seconds), ("latency", latency_s), ("rate", 1.0 if rate is None else rate)):
        if not 0 < value < math.inf:
            raise ValueError(f"--{name} {value:g} is invalid: must be above 0")
    delayed = DelayedJudge(median_s=latency_s, seed=seed)
    if rate is None:
        rate = (judge.max_replicas - 0.5) * judge.target_ongoing_requests / (delayed.mean_s * group_size)
    alone = replace(judge, chain=("openai",), llm=replace(judge.llm, model="delayed"), cache="")
    return LoadPlan(judge=alone, group_size=group_size, delayed=delayed, rate=rate, seconds=seconds)


@dataclass(slots=True, kw_only=True)
class LoadTrace:
    """Measurements of a load test, filled while it runs."""

    plan: LoadPlan
    sizes: list[tuple[float, PoolSize]] = field(default_factory=list)
    """(seconds after the start, replicas) of the whole load."""
    waits_s: list[float] = field(default_factory=list)
    """Queueing time of each group: its time minus that of its slowest call."""
    verdicts_at_s: list[float] = field(default_factory=list)
    num_lost: int = 0
    """Answers without a verdict."""
    num_retries: int = 0

    def figures(self) -> dict[str, Any]:
        """The output of `--json`. Times that were not reached are null."""
        begin, end = self.plan.busy
        size, quiet = self.plan.size_at(begin), self.plan.size_at(end)
        until_right = (at_s - begin for at_s, now in self.sizes if at_s >= begin and now.num_running >= size)
        until_released = (at_s - end for at_s, now in self.sizes if at_s >= end and now.num_running <= quiet)
        most = max((now.num_running + now.num_starting for at_s, now in self.sizes if at_s < end), default=0)
        wait_p50_s, wait_p95_s = np.quantile(self.waits_s or [0.0], (0.5, 0.95)).tolist()
        return {
            "right_size": size,
            "right_size_s": next(until_right, None),
            "release_s": next(until_released, None),
            "overshoot": max(0, most - size),
            "replicas_max": max((now.num_running for _, now in self.sizes), default=0),
            "wait_p50_s": wait_p50_s,
            "wait_p95_s": wait_p95_s,
            "num_verdicts": len(self.verdicts_at_s),
            "verdicts_per_s": sum(begin <= at_s < end for at_s in self.verdicts_at_s) / (end - begin),
            "num_lost": self.num_lost,
            "num_retries": self.num_retries,
        }


async def follow_load(
    plan: LoadPlan, *, on_progress: Callable[[int, int], None] = lambda at_s, seconds: None
) -> LoadTrace:
    """Drive a pool of delayed judges on the connected Ray cluster, through the `JudgePool` of a run.

    `on_progress` is called with (seconds since the start, total seconds), several times a second.
    """
    name, trace = f"judge-load-{secrets.token_hex(3)}", LoadTrace(plan=plan)
    try:
        handle = await asyncio.to_thread(deploy_judges, plan.judge, name, make=plan.delayed.make)
        try:
            pool, started = JudgePool(handle, plan.judge), time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                watch = tasks.create_task(_watch(name, trace, started, on_progress))
                await send_groups(pool, trace, started)
                watch.cancel()
            trace.num_retries = pool.counters.num_retries
        finally:
            handle.close()
    finally:
        await asyncio.to_thread(delete_application, name)
    return trace


async def send_groups(pool: JudgePool, trace: LoadTrace, started: float) -> None:
    """Send the groups at their arrival times; returns when the plan has ended and all are judged."""
    plan = trace.plan

    async def judge(group: int) -> None:
        answers = tuple(f"answer {group}.{index}" for index in range(plan.group_size))
        sent_at = time.monotonic()
        outcomes = await pool.grade(JudgeRequest(question=f"load {group}", reference="none", predictions=answers))
        now = time.monotonic()
        trace.waits_s.append(max(0.0, now - sent_at - max(plan.delayed.delay_s(answer) for answer in answers)))
        num_lost = sum(isinstance(outcome, NoVerdict) for outcome in outcomes)
        trace.num_lost += num_lost
        trace.verdicts_at_s += [now - started] * (len(outcomes) - num_lost)

    async with asyncio.TaskGroup() as groups:
        for group, at_s in enumerate(plan.arrivals()):
            await asyncio.sleep(at_s + started - time.monotonic())
            groups.create_task(judge(group))
        await asyncio.sleep(plan.seconds + started - time.monotonic())


async def _watch(name: str, trace: LoadTrace, started: float, on_progress: Callable[[int, int], None]) -> None:
    while True:
        size, at_s = await asyncio.to_thread(count_replicas, name), time.monotonic() - started
        if size is not None:
            trace.sizes.append((at_s, size))
        on_progress(int(at_s), int(trace.plan.seconds))
        await asyncio.sleep(SAMPLE_S)


def load_table(trace: LoadTrace) -> Table:
    plan, figures = trace.plan, trace.figures()
    times = ("never" if figures[name] is None else f"{figures[name]:.1f} s" for name in ("right_size_s", "release_s"))
    rows = {
        "replicas needed": f"{{right_size}} of at most {plan.judge.max_replicas} replicas",
        "time to scale up, to scale down": ", ".join(times),
        "replicas above that": "{overshoot}",
        "queueing time of a group, p50, p95": "{wait_p50_s:.2f} s, {wait_p95_s:.2f} s",
        "verdicts, per second": "{num_verdicts}, {verdicts_per_s:.1f}",
        "answers without a verdict, retries": "{num_lost}, {num_retries}",
    }
    title = f"{plan.rate:.1f} groups/s of {plan.group_size}, {plan.delayed.mean_s:.2f} s per call"
    table = Table("while busy", "measured", title=title)
    for what, seen in rows.items():
        table.add_row(what, seen.format(**figures))
    return table


def plot_load(trace: LoadTrace, out: Path) -> None:
    """Plot replicas over time as a PNG; the folder of `out` is created."""
    from matplotlib.figure import Figure  # slow to import

    plan, at_s = trace.plan, [at_s for at_s, _ in trace.sizes]
    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    axes = figure.subplots()
    running = [now.num_running for _, now in trace.sizes]
    all_up = [now.num_running + now.num_starting for _, now in trace.sizes]
    axes.fill_between(at_s, running, all_up, step="post", alpha=0.25, linewidth=0, label="starting")
    axes.step(at_s, running, where="post", linewidth=2, label="running")
    edges = (0.0, *plan.busy, plan.seconds)
    axes.stairs(
        [plan.size_at(edge) for edge in edges[:-1]], edges, baseline=None, linestyle="--", label="replicas needed"
    )
    axes.axvspan(*plan.busy, alpha=0.09, linewidth=0)
    axes.set(xlabel="seconds (shaded: busy)", ylabel="replicas", ylim=(0, plan.judge.max_replicas + 0.6))
    axes.legend(frameon=False, loc="upper right")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, format="png", dpi=110)
