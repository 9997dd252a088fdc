"""How many verdicts a second the judges' pool can give: what a call itself costs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from statistics import median

from cluster.judging.load import running_pool
from configs.judges import JudgeConfig
from judge.verdict import JudgeRequest, check_reply

ROUND_S = 1.5
NUM_ROUNDS = 5
NUM_CALLERS = 64
NUM_ANSWERS = 512
"""Answers of a saturation round that are told apart; more than any group holds, so that no two of a call are equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saturation:
    """Verdicts per second of the same pool, asked group by group and answer by answer. One entry per round."""

    grouped: tuple[float, ...]
    single: tuple[float, ...]

    def figures(self) -> dict[str, object]:
        ratios = [ours / peer for ours, peer in zip(self.grouped, self.single, strict=True)]
        return {
            "verdicts_per_s": median(self.grouped),
            "peer_verdicts_per_s": median(self.single),
            "verdicts_ratio": median(ratios),
        }


async def saturate(judge: JudgeConfig, *, group_size: int, num_rounds: int = NUM_ROUNDS) -> Saturation:
    """Verdicts per second by rules, which take next to no time: what a call itself costs.

    One pool of fixed size, in alternating rounds: calls of a whole group, and calls of one answer each.
    """
    fixed = replace(judge, chain=("rules",), min_replicas=judge.max_replicas)
    grouped: list[float] = []
    single: list[float] = []
    async with running_pool(fixed) as (handle, _):
        await verdicts_per_s(handle.grade, group_size)
        for _ in range(num_rounds):
            grouped.append(await verdicts_per_s(handle.grade, group_size))
            single.append(await verdicts_per_s(handle.grade, 1))
    return Saturation(grouped=tuple(grouped), single=tuple(single))


async def verdicts_per_s(
    grade: Callable[[JudgeRequest], Awaitable[object]], num_per_call: int, *, seconds: float = ROUND_S
) -> float:
    """Rate of verdicts while `NUM_CALLERS` callers send their next call as soon as the last one came back."""
    answers = [f"answer {number}" for number in range(NUM_ANSWERS)]
    started = time.monotonic()
    num_verdicts = 0

    async def caller(first: int) -> None:
        nonlocal num_verdicts
        at = first
        while time.monotonic() - started < seconds:
            predictions = tuple(answers[(at + index) % NUM_ANSWERS] for index in range(num_per_call))
            request = JudgeRequest(question="?", reference="answer 7", predictions=predictions)
            reply = check_reply(await grade(request), num_per_call)
            num_verdicts += len(reply.outcomes)
            at += num_per_call

    await asyncio.gather(*(caller(7 * number) for number in range(NUM_CALLERS)))
    return num_verdicts / (time.monotonic() - started)
