"""What waiting for judges costs: seconds of a step, by the judges' latency and by look-ahead depth.

    uv run python -m tests.bench.judge_wait [--steps 4] [--update 5] [--latencies 0 0.2 1 3] [--depths 0 1 2]

The pool is real (Ray Serve, delayed judges, one call per group) and so are `collect` and `Lookahead`; engine and
learner only sleep: groups play for log-normal seconds, some at a time, and an update takes as long as it is told. That
way generation, judging and learning can be set against each other on any machine.

The first latency is what the others are compared with, at the same depth; 0 is a judge that answers at once. Verdicts
alone are waited for while every group under way has been played and one is being judged; in an update they cost
nothing, so what counts is the part in which the learner had nothing to do.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from actors.data.dataset import PromptCursor, SkipLedger
from actors.episode import PlayedGroup
from actors.play import PlayRequest
from cluster.collect import Collected, Collector
from cluster.judging.arrivals import Latency
from cluster.judging.load import own_cluster, running_pool
from cluster.lookahead import Lookahead
from configs.judges import JudgeConfig
from configs.load import load_config
from configs.schema import Config
from judge.chain import make_judge
from judge.pool import JudgePool
from judge.verdict import Judge, JudgeRequest, Outcome
from tests.fakes import make_episode, make_group

PLAY = Latency(median_s=2.0, sigma=0.4)
NUM_IN_FLIGHT = 8
SEED = 0


class DelayedRules:
    """The rules, after as long as an LLM would take."""

    def __init__(self, latency: Latency, config: JudgeConfig) -> None:
        self._latency = latency
        self._rules = make_judge(config)

    async def grade(self, request: JudgeRequest) -> list[Outcome]:
        await asyncio.sleep(self._latency.draw(SEED, request.question))
        return await self._rules.grade(request)


def delayed_rules(latency: Latency, config: JudgeConfig) -> Judge:
    return DelayedRules(latency, config)


class SleepingEngine:
    """Plays groups in which half of the answers are right, some groups at a time."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(NUM_IN_FLIGHT)

    async def play(self, request: PlayRequest) -> tuple[PlayedGroup, Any]:
        name = f"{request.step}/{request.ref.uid}"
        async with self._free:
            await asyncio.sleep(PLAY.draw(SEED, name))
        episodes = [
            make_episode(answer="red" if index % 2 else "blue", index=index, sample=request.ref.uid)
            for index in range(request.num_episodes)
        ]
        return replace(make_group(episodes, ref=request.ref), question=name), None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    seconds: float
    collect_s: float
    learner_idle_s: float
    """Of the step, what the learner waited for its batch."""
    judge_wait_s: float
    """Of that, what it waited for verdicts alone."""


def make_run(config: Config, judges: JudgePool) -> Any:
    """As much of a run as `collect` needs."""
    silent = SimpleNamespace(group_done=lambda: None, warn=lambda text: None)
    return SimpleNamespace(
        step=0,
        prompts=PromptCursor(dataset="bench", num_rows=100_000, seed=SEED),
        rollouts=SleepingEngine(),
        judges=judges,
        skips=SkipLedger(max_skipped_fraction=1.0),
        display=silent,
        judge_watch=SimpleNamespace(
            check=lambda: None, ride_along=lambda step, sample: None, ask_replicas=lambda: None
        ),
    )


async def run_steps(config: Config, judges: JudgePool, *, depth: int, num_steps: int, update_s: float) -> list[Step]:
    """The main loop with a learner that sleeps. The first step fills the look-ahead and is not returned."""
    run, steps = make_run(config, judges), []
    async with (
        Collector(run, config) as collector,
        Lookahead(collector.collect, depth=depth, num_batches=num_steps + 1 + depth, allow=collector.allow) as ahead,
    ):
        for _ in range(num_steps + 1):
            started = time.monotonic()
            batch: Collected = await ahead.take()
            idle_s = time.monotonic() - started
            await asyncio.sleep(update_s)
            steps.append(
                Step(
                    seconds=time.monotonic() - started,
                    collect_s=batch.seconds,
                    learner_idle_s=idle_s,
                    judge_wait_s=min(batch.judge_wait_s, idle_s),
                )
            )
    return steps[1:]


def summary(steps: list[Step]) -> dict[str, float]:
    total_s, num_steps = sum(step.seconds for step in steps), len(steps)
    return {
        "step_s": total_s / num_steps,
        "collect_s": sum(step.collect_s for step in steps) / num_steps,
        "judge_wait_s": sum(step.judge_wait_s for step in steps) / num_steps,
        "judge_wait_share": sum(step.judge_wait_s for step in steps) / total_s,
    }


async def measure(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    config = load_config("tiny", [])
    found = {}
    print(
        f"{'judge, median':>14} {'depth':>6} {'step':>8} {'longer by':>10} {'verdicts alone':>15} {'of the step':>12}"
    )
    first: dict[int, float] = {}
    with own_cluster():
        for median_s in arguments.latencies:
            make = functools.partial(delayed_rules, Latency(median_s=median_s, sigma=0.4))
            async with running_pool(config.judge, make) as (handle, _):
                for depth in arguments.depths:
                    judges = JudgePool(handle, config.judge)
                    steps = await run_steps(
                        config, judges, depth=depth, num_steps=arguments.steps, update_s=arguments.update
                    )
                    figures = found[f"{median_s:g} s, depth {depth}"] = summary(steps)
                    figures["longer_by"] = figures["step_s"] / first.setdefault(depth, figures["step_s"]) - 1
                    print(
                        f"{median_s:12.2f} s {depth:6} {figures['step_s']:6.2f} s {figures['longer_by']:10.1%}"
                        f" {figures['judge_wait_s']:13.3f} s {figures['judge_wait_share']:12.2%}",
                        flush=True,
                    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--update", type=float, default=5.0, help="seconds of an update")
    parser.add_argument("--latencies", type=float, nargs="+", default=[0.0, 0.2, 1.0, 3.0])
    parser.add_argument("--depths", type=int, nargs="+", default=[0, 1, 2])
    print(json.dumps(asyncio.run(measure(parser.parse_args()))))


if __name__ == "__main__":
    main()
