"""Where the time of a served request goes: what the engine takes by itself, and the CPU time of each process."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from cluster.serving.policy import Answered, ServedPolicy, start_policy
from cluster.serving.requests import KINDS, Question
from configs.schema import Config
from tests.bench.forced_policy import start_forced
from tests.bench.serve_jobs import Job, shapes_jobs, shapes_phases, smooth_jobs, smooth_phases

SEED = 1000
"""The floor is played with other pictures than the endpoint: no cache may know one of them."""
KINDS_OF_PROCESSES = {"ProxyActor": "proxy", "ServeReplica": "replica", "VLLM::": "engine", "api_server": "server"}
"""Part of a process's command line -> what it is."""


async def start_with_floor(
    config: Config, *, sides: Sequence[int], number: int, concurrency: int, file: str
) -> ServedPolicy:
    """The policy of a replica. Before it serves, it plays what clients will ask for, without them.

    Pictures are decoded and cut in advance, so that what is timed is the protocol and the engine. Writes the requests a
    second of each phase. Without `sides` it is the shapes task.
    """
    policy = await (start_forced(config) if sides else start_policy(config))
    if sides:
        await _play(policy, smooth_jobs(config, sides[0], 64, 0.5, seed=SEED + 99), concurrency)
        phases = smooth_phases(config, sides, number, seed=SEED)
    else:
        jobs = shapes_jobs(seed=SEED)
        _, answers = await _play(policy, jobs, concurrency)
        known = [(job, answer.episode.asked) for job, answer in zip(jobs, answers, strict=True)]
        phases = shapes_phases(known, number, seed=SEED)
    rates = {name: number / (await _play(policy, jobs, concurrency))[0] for name, jobs in phases.items()}
    Path(file).write_text(json.dumps(rates))
    return policy


async def _play(policy: ServedPolicy, jobs: Sequence[Job], concurrency: int) -> tuple[float, list[Answered]]:
    pictures = await asyncio.gather(*(policy.cut(job.picture) for job in jobs))
    places = asyncio.Semaphore(concurrency)

    async def one(number: int) -> Answered:
        async with places:
            question = Question(text=jobs[number].question, kind=KINDS[jobs[number].resolution])
            return await policy.answer(question, pictures[number])

    started = time.perf_counter()
    answers = await asyncio.gather(*map(one, range(len(jobs))))
    return time.perf_counter() - started, answers


def cpu_seconds() -> dict[str, float]:
    """CPU time so far of this process, the client, and of all below it, by what they are."""
    own = psutil.Process()
    found = dict.fromkeys(("client", *KINDS_OF_PROCESSES.values(), "ray"), 0.0)
    for process in (own, *own.children(recursive=True)):
        try:
            line, times = " ".join(process.cmdline()), process.cpu_times()
        except psutil.Error:
            continue
        other = "client" if process == own else "ray"
        kind = next((kind for part, kind in KINDS_OF_PROCESSES.items() if part in line), other)
        found[kind] += times.user + times.system
    return found
