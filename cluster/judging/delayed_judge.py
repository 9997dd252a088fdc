"""A judge that takes time but needs no endpoint. Replicas import this file when they start, so it imports little."""

from __future__ import annotations

import asyncio
import math
import random
from dataclasses import dataclass

from configs.judges import JudgeConfig
from judge.verdict import JudgeRequest, Outcome, Usage, Verdict

SIGMA = 0.5
"""Standard deviation of the logarithm of a call's seconds, about that of an LLM endpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayedJudge:
    """Waits for each prediction as long as an LLM would, log-normally, then calls it right."""

    median_s: float
    seed: int

    @property
    def mean_s(self) -> float:
        return self.median_s * math.exp(SIGMA**2 / 2)

    def delay_s(self, prediction: str) -> float:
        """The same in every process."""
        return self.median_s * math.exp(SIGMA * random.Random(f"{self.seed}/{prediction}").gauss(0.0, 1.0))

    async def grade(self, request: JudgeRequest) -> list[Outcome]:
        await asyncio.sleep(max(self.delay_s(prediction) for prediction in request.predictions))
        usage = Usage(num_calls=1)
        return [Verdict(is_correct=True, judge="delayed", reason="", usage=usage) for _ in request.predictions]

    def make(self, config: JudgeConfig) -> DelayedJudge:
        """As `judge.chain.make_judge`: how a replica builds its judge."""
        return self
