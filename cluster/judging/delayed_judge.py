"""A judge that takes time but needs no endpoint, and a ledger of what was judged: what `visionthink judge load` drives.

Replicas import this file when they start, so it imports little.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import ray

from cluster.judging.arrivals import Latency
from configs.judges import JudgeConfig
from judge.verdict import Judge, JudgeRequest, Outcome, Verdict


class Ledger:
    """How often judges took up each answer. It outlives the replicas that told it."""

    def __init__(self) -> None:
        self._times_judged: Counter[str] = Counter()

    def add(self, predictions: tuple[str, ...]) -> None:
        self._times_judged.update(predictions)

    def times_judged(self) -> list[tuple[str, int]]:
        return list(self._times_judged.items())


class DelayedJudge:
    """Waits as long as an LLM would, then calls each prediction right, in its own words."""

    def __init__(self, latency: Latency, seed: int, ledger_name: str) -> None:
        self._latency = latency
        self._seed = seed
        self._ledger: Any = ray.get_actor(ledger_name) if ledger_name else None

    async def grade(self, request: JudgeRequest) -> list[Outcome]:
        """One verdict per prediction, whose reason is the prediction itself: a verdict can be traced to its answer.

        The question is the number of the group.
        """
        if self._ledger is not None:
            await self._ledger.add.remote(request.predictions)
        await asyncio.sleep(self._latency.draw(self._seed, int(request.question)))
        return [Verdict(is_correct=True, judge="delayed", reason=text) for text in request.predictions]


def delayed_judges(latency: Latency, seed: int, ledger_name: str = "") -> Callable[[JudgeConfig], Judge]:
    """How a replica makes its judge. An empty ledger name keeps no count."""
    return functools.partial(_make, latency, seed, ledger_name)


def _make(latency: Latency, seed: int, ledger_name: str, config: JudgeConfig) -> Judge:
    return DelayedJudge(latency, seed, ledger_name)
