"""What is asked of a judge, what comes back, one outcome per prediction, and what that took.

A verdict is a decision. Where none could be had there is a `NoVerdict`, which is masked later and never counts as
a wrong answer: training on an outage would teach the policy noise.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import ClassVar, Literal, Protocol, TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What outcomes took of an LLM. Rules take nothing."""

    num_calls: int = 0
    num_lost_calls: int = 0
    """Of these, calls that brought no reply: nobody knows what they took, so their tokens are estimates."""
    prompt_tokens: int = 0
    reply_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        return self.prompt_tokens + self.reply_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A decision on one prediction."""

    is_correct: bool
    judge: str
    """Who decided: a backend's name, or `format` for an episode without an answer."""
    reason: str
    """The rule or the judge's words, for reports."""
    judge_version: str = ""
    """Of an LLM's verdict: endpoint, model, revision, prompt and sampling that gave it. Empty for rules."""
    model: str = ""
    """The model that answered, by the endpoint's own word: a name such as `gpt-4o` moves from one to another."""
    usage: Usage = Usage()
    reply: str = ""
    """The grade or the extracted answer, where the LLM was asked for one instead of a verdict (see `Task`)."""
    failure: ClassVar[None] = None


class Failure(StrEnum):
    """Why there is no verdict: it decides what a caller does next."""

    UNDECIDED = "undecided"  # this judge cannot tell; the next one of the chain may
    UNUSABLE = "unusable"  # the judge replied, but not with one verdict. Another try may help
    UNREACHABLE = "unreachable"  # no reply: connection, time-out, server error, lost replica; many mean an outage
    THROTTLED = "throttled"  # too many calls (429). Fewer at a time will help
    DENIED = "denied"  # key, model or address refused (401, 403, 404). No call will succeed until somebody mends it
    REJECTED = "rejected"  # this one request is refused (400, 422, a content filter). No other try will help


FINAL = frozenset({Failure.REJECTED, Failure.UNDECIDED})
"""Failures that another try of the same request cannot mend."""
AVAILABILITY = frozenset({Failure.UNREACHABLE, Failure.THROTTLED, Failure.DENIED})
"""Failures of the judge. The others are failures of one request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoVerdict:
    """No decision could be had in time. The episode is left out of its group."""

    reason: str
    failure: Failure = Failure.UNREACHABLE
    retry_after_s: float | None = None
    """How long the endpoint asked to be left alone."""
    status: int | None = None
    """HTTP status of a failed call; None where the endpoint gave none."""
    usage: Usage = Usage()


Outcome: TypeAlias = Verdict | NoVerdict


Task: TypeAlias = Literal["verdict", "grade", "extract"]
"""`verdict`: right or wrong. `grade`: from 0 to 1 in tenths, right from 0.5 on. `extract`: the final answer that a
longer one comes to; the reference says in what form. Only an LLM can do the last two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRequest:
    """Answers to one question, of a group or one alone. Text only: a judge sees neither picture nor reasoning."""

    question: str
    reference: str
    predictions: tuple[str, ...]
    task: Task = "verdict"
    run: int = 0
    """Which of several independent judgements this is. The LLM gets it as its seed; each is cached for itself."""


class Judge(Protocol):
    """A backend, or a pool of them: decides on all predictions of a request, in their order."""

    async def grade(self, request: JudgeRequest) -> Sequence[Outcome]:
        """One outcome per prediction. Raises JudgeError where another try may help."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GradeReply:
    """What a replica of the pool sends back about one answer."""

    outcome: Outcome
    service_s: float
    """Seconds from the replica's start on the request to its end: the rest of a round trip was waiting."""


async def grade_one(judge: Judge, request: JudgeRequest) -> GradeReply:
    """Have a judge decide on the one prediction of a request. A reply that is not one outcome is `UNUSABLE`."""
    started = time.monotonic()
    outcomes: object = await judge.grade(request)
    match outcomes:
        case [Verdict() | NoVerdict() as outcome]:
            pass
        case _:
            outcome = NoVerdict(reason=f"a judge replied with {outcomes!r:.80}", failure=Failure.UNUSABLE)
    return GradeReply(outcome=outcome, service_s=time.monotonic() - started)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeCounts:
    """What judging has taken since its pool came up; the difference of two is what happened between them."""

    num_groups: int = 0
    num_calls: int = 0  # calls to replicas, one per answer, further tries and probes included
    num_retries: int = 0  # calls about an answer after its first one
    num_throttled: int = 0  # predictions turned away with 'too many calls' (429)
    num_unjudged: int = 0  # predictions that ended without a verdict
    num_cache_hits: int = 0  # predictions whose verdict was known from an earlier call
    num_llm_calls: int = 0  # calls that replicas made to an LLM
    num_lost_calls: int = 0  # of these, calls that brought no reply. Tokens and cost hold what they may have taken
    prompt_tokens: int = 0
    reply_tokens: int = 0
    cost_usd: float = 0.0  # at the prices of judge.llm
    num_replies: int = 0  # calls that a replica answered: the cases of `queue_s`
    queue_s: float = 0.0  # seconds of round trips in which no replica worked on the request, all replies added up
    total_s: float = 0.0  # seconds of all groups added up; groups are judged at the same time
    paused_s: float = 0.0  # seconds in which somebody waited for an outage to end

    @property
    def mean_queue_s(self) -> float:
        return self.queue_s / max(1, self.num_replies)

    @property
    def mean_s(self) -> float:
        """Seconds from a group's question to its last verdict."""
        return self.total_s / max(1, self.num_groups)

    def __add__(self, other: JudgeCounts) -> JudgeCounts:
        return replace(self, **{name: amount + getattr(other, name) for name, amount in asdict(self).items()})

    def __sub__(self, earlier: JudgeCounts) -> JudgeCounts:
        return replace(self, **{name: amount - getattr(earlier, name) for name, amount in asdict(self).items()})
