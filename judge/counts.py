"""What judging has taken, as one frozen snapshot that adds and subtracts."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Self

from configs.judges import LLMJudgeConfig
from judge.verdict import Usage

TOKENS_PER_PRICE = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeCounts:
    """Sums since the pool came up; the difference of two is what happened between them."""

    num_groups: int = 0
    num_calls: int = 0
    """Calls to replicas, one per answer, further tries and probes included."""
    num_retries: int = 0
    """Calls about an answer after its first one."""
    num_throttled: int = 0
    """Predictions turned away with 'too many calls' (429)."""
    num_unjudged: int = 0
    """Predictions that ended without a verdict."""
    num_cache_hits: int = 0
    """Predictions whose verdict was known from an earlier call."""
    num_llm_calls: int = 0
    """Calls that replicas made to an LLM."""
    num_lost_calls: int = 0
    """Of these, calls that brought no reply. Tokens and cost hold what they may have taken at most."""
    prompt_tokens: int = 0
    reply_tokens: int = 0
    cost_usd: float = 0.0
    """At the prices of judge.llm."""
    num_replies: int = 0
    """Calls that a replica answered: the cases of `queue_s`."""
    queue_s: float = 0.0
    """Seconds of round trips in which no replica worked on the request, all replies added up."""
    total_s: float = 0.0
    """Seconds of all groups added up; groups are judged at the same time."""
    paused_s: float = 0.0
    """Seconds in which somebody waited for an outage to end."""

    @property
    def mean_queue_s(self) -> float:
        return self.queue_s / max(1, self.num_replies)

    @property
    def mean_s(self) -> float:
        """Seconds from a group's question to its last verdict."""
        return self.total_s / max(1, self.num_groups)

    def __add__(self, other: JudgeCounts) -> JudgeCounts:
        return replace(self, **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def __sub__(self, earlier: JudgeCounts) -> JudgeCounts:
        return replace(self, **{f.name: getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)})

    @classmethod
    def of_usage(cls, usage: Usage, config: LLMJudgeConfig) -> Self:
        """What replies took of the LLM, priced."""
        price = usage.prompt_tokens * config.prompt_price + usage.reply_tokens * config.reply_price
        counted = asdict(usage) | {"num_llm_calls": usage.num_calls, "num_calls": 0}
        return cls(**counted, cost_usd=price / TOKENS_PER_PRICE)
