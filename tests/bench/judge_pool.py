"""Verdicts per second of the judges' pool at saturation, against its own Serve handle and bare asynchronous actors.

    uv run python -m tests.bench.judge_pool [--rounds 5] [--groups 200] [--json]

The judge answers at once, so a verdict costs what its way costs: limits, tries, a call to Serve. Two replicas, groups
of 8, 64 of them at a time, alternating rounds; a ratio is the median of the rounds' own.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from statistics import median

import ray

from cluster.connect import connect
from cluster.judging.load import DelayedJudge
from configs.judges import JudgeConfig, LLMJudgeConfig
from judge.deployment import JudgeReplica, delete_application, deploy_judges
from judge.pool import JudgePool
from judge.verdict import JudgeRequest

GROUP_SIZE, NUM_REPLICAS, NUM_CALLERS = 8, 2, 64
LLM = LLMJudgeConfig(model="instant", max_concurrent=NUM_CALLERS * GROUP_SIZE)
CONFIG = JudgeConfig(
    chain=("openai",), llm=LLM, min_replicas=NUM_REPLICAS, max_replicas=NUM_REPLICAS, target_ongoing_requests=256.0
)
JUDGE = DelayedJudge(median_s=0.0, seed=0)
Grade = Callable[[JudgeRequest], Awaitable[object]]


async def verdicts_per_s(grade: Grade, num_groups: int) -> float:
    numbers, started = iter(range(num_groups)), time.monotonic()

    async def caller() -> None:
        for number in numbers:
            answers = tuple(f"answer {number}.{index}" for index in range(GROUP_SIZE))
            await grade(JudgeRequest(question="which?", reference="none", predictions=answers))

    await asyncio.gather(*(caller() for _ in range(NUM_CALLERS)))
    return num_groups * GROUP_SIZE / (time.monotonic() - started)


def per_answer(grade: Grade) -> Grade:
    return lambda request: asyncio.gather(*(grade(replace(request, predictions=(p,))) for p in request.predictions))


async def measure(num_rounds: int, num_groups: int) -> dict[str, list[float]]:
    actor = ray.remote(JudgeReplica).options(num_cpus=0, max_concurrency=1000)
    actors = itertools.cycle([actor.remote(CONFIG, JUDGE.make) for _ in range(NUM_REPLICAS)])
    handle = await asyncio.to_thread(deploy_judges, CONFIG, "bench", make=JUDGE.make)
    contenders: dict[str, Grade] = {
        "pool": JudgePool(handle, CONFIG).grade,
        "Serve handle": per_answer(handle.grade),
        "bare actors": per_answer(lambda request: next(actors).grade.remote(request)),
    }
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(num_rounds + 1):
        for name, grade in contenders.items():
            rates[name].append(await verdicts_per_s(grade, num_groups))
    handle.close()
    await asyncio.to_thread(delete_application, "bench")
    return {name: rounds[1:] for name, rounds in rates.items()}  # the first round warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--groups", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    connect()
    rates = asyncio.run(measure(arguments.rounds, arguments.groups))
    for name, rounds in rates.items():
        ratio = median(ours / theirs for ours, theirs in zip(rates["pool"], rounds, strict=True))
        print(f"{name:12} {median(rounds):6.0f} verdicts/s, the pool is {ratio:.2f}x")
    if arguments.json:
        print(json.dumps({"verdicts_per_s": rates}))


if __name__ == "__main__":
    main()
