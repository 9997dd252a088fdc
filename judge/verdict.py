"""What is asked of a judge and what comes back: one outcome per prediction.

A verdict is a decision. Where none could be had there is a `NoVerdict`, which is masked later and never counts as
a wrong answer: training on an outage would teach the policy noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Protocol, TypeAlias

from actors.episode import Episode, PlayedGroup
from actors.errors import JudgeError

FORMAT_RULE = "format"
"""Name of the judge of episodes that gave no answer."""


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

    def __add__(self, other: Usage) -> Usage:
        return Usage(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


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


class Failure(StrEnum):
    """Why there is no verdict: it decides what a caller does next."""

    UNDECIDED = "undecided"
    """This judge cannot tell; the next one of the chain may."""
    UNUSABLE = "unusable"
    """The judge replied, but not with one verdict. Another try may help."""
    UNREACHABLE = "unreachable"
    """No reply: connection, time-out, server error, lost replica. Another try may help; many mean an outage."""
    THROTTLED = "throttled"
    """Too many calls (429). Fewer at a time will help."""
    DENIED = "denied"
    """Key, model or address refused (401, 403, 404). No call will succeed until somebody mends it."""
    REJECTED = "rejected"
    """This one request is refused (400, 422, a content filter). No other try will help."""


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


def failure_of(outcome: Outcome) -> Failure | None:
    """Why there is no verdict; None where there is one."""
    return outcome.failure if isinstance(outcome, NoVerdict) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRequest:
    """Answers to one question, of a group or one alone. Text only: a judge sees neither picture nor reasoning."""

    question: str
    reference: str
    predictions: tuple[str, ...]


class Judge(Protocol):
    """A backend: decides on all predictions of a request, in their order."""

    async def grade(self, request: JudgeRequest) -> list[Outcome]:
        """One outcome per prediction. Raises JudgeError where another try may help."""
        ...


def judge_request(group: PlayedGroup) -> JudgeRequest:
    """What has to be judged of a group: the answers of the episodes that gave one, in the order of the episodes."""
    answers = tuple(episode.answer for episode in group.episodes if episode.answer is not None)
    return JudgeRequest(question=group.question, reference=group.answer, predictions=answers)


def spread_outcomes(episodes: Sequence[Episode], graded: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """Outcomes of the answered episodes -> one per episode; an episode without an answer is wrong by definition.

    Args:
        episodes: the G episodes of a group.
        graded: outcomes of those that have an answer, in the same order (see `judge_request`).
    """
    num_answered = sum(episode.answer is not None for episode in episodes)
    assert len(graded) == num_answered, (len(graded), num_answered)
    remaining = iter(graded)
    return tuple(
        next(remaining)
        if episode.answer is not None
        else Verdict(is_correct=False, judge=FORMAT_RULE, reason=f"no answer: {episode.status.value}")
        for episode in episodes
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GradeReply:
    """What a replica of the pool sends back."""

    outcomes: tuple[Outcome, ...]
    """One per prediction, in their order."""
    service_s: float
    """Seconds from the replica's start on the request to its end: the rest of a round trip was waiting."""


def check_reply(reply: object, num_predictions: int) -> GradeReply:
    """As `check_outcomes`, for what a replica sent."""
    if not isinstance(reply, GradeReply):
        raise JudgeError(f"a judge replied with {type(reply).__name__}, not with a GradeReply")
    check_outcomes(reply.outcomes, num_predictions)
    return reply


def check_outcomes(reply: object, num_predictions: int) -> tuple[Outcome, ...]:
    """Take what a judge replied, if it is one outcome per prediction: else nobody can tell which belongs to which.

    Raises:
        JudgeError: wrong type or wrong length.
    """
    if not isinstance(reply, list | tuple):
        raise JudgeError(f"a judge replied with {type(reply).__name__}, not with a list of outcomes")
    if len(reply) != num_predictions:
        raise JudgeError(f"a judge replied with {len(reply)} outcomes for {num_predictions} predictions")
    for outcome in reply:
        if not isinstance(outcome, Verdict | NoVerdict):
            raise JudgeError(f"a judge replied with {type(outcome).__name__} where an outcome belongs")
    return tuple(reply)
