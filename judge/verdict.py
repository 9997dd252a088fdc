"""What is asked of a judge and what comes back: one request per group, one outcome per prediction.

A verdict is a decision. Where none could be had there is a `NoVerdict`, which is masked later and never counts as
a wrong answer: training on an outage would teach the policy noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from actors.episode import Episode, PlayedGroup
from actors.errors import JudgeError

FORMAT_RULE = "format"
"""Name of the judge of episodes that gave no answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A decision on one prediction."""

    is_correct: bool
    judge: str
    """Who decided: a backend's name, or `format` for an episode without an answer."""
    reason: str
    """The rule or the judge's words, for reports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoVerdict:
    """No decision could be had in time. The episode is left out of its group."""

    reason: str


Outcome: TypeAlias = Verdict | NoVerdict


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRequest:
    """The answered episodes of one group. Text only: a judge sees neither picture nor reasoning."""

    question: str
    reference: str
    predictions: tuple[str, ...]


class Judge(Protocol):
    """A backend: decides on all predictions of a request, in their order."""

    async def grade(self, request: JudgeRequest) -> list[Outcome]:
        """One outcome per prediction.

        Raises:
            JudgeError: the judge could not be reached, or said nothing usable; another try may help.
        """
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
    remaining: Iterator[Outcome] = iter(graded)
    return tuple(
        next(remaining)
        if episode.answer is not None
        else Verdict(is_correct=False, judge=FORMAT_RULE, reason=f"no answer: {episode.status.value}")
        for episode in episodes
    )


def check_outcomes(reply: object, num_predictions: int) -> tuple[Outcome, ...]:
    """Take a judge's reply as it came over the wire, if it is one outcome per prediction.

    Raises:
        JudgeError: wrong type or wrong length. Nobody can tell which outcome belongs to which prediction then.
    """
    if not isinstance(reply, list | tuple):
        raise JudgeError(f"a judge replied with {type(reply).__name__}, not with a list of outcomes")
    if len(reply) != num_predictions:
        raise JudgeError(f"a judge replied with {len(reply)} outcomes for {num_predictions} predictions")
    for outcome in reply:
        if not isinstance(outcome, Verdict | NoVerdict):
            raise JudgeError(f"a judge replied with {type(outcome).__name__} where an outcome belongs")
    return tuple(reply)
