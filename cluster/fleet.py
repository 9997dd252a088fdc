"""Rollout pool and judge pool: everything the main loop needs besides the learner, and all of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actors.episode import Episode, PlayedGroup
from actors.fleet.pool import RolloutPool
from judge.pool import JudgePool
from judge.verdict import JudgeRequest, Outcome, Verdict

FORMAT_RULE = "format"
"""Name of the judge of episodes that gave no answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    rollouts: RolloutPool
    judges: JudgePool

    async def judge(self, played: PlayedGroup) -> tuple[Outcome, ...]:
        """One outcome per episode of a group.

        Raises:
            JudgeError: an outage of the judges outlasted its limit.
        """
        answers = tuple(episode.answer for episode in played.episodes if episode.answer is not None)
        request = JudgeRequest(question=played.question, reference=played.answer, predictions=answers)
        return spread_outcomes(played.episodes, await self.judges.grade(request) if answers else ())


def spread_outcomes(episodes: Sequence[Episode], graded: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """Outcomes of the episodes with an answer, in their order -> one per episode; without an answer it is wrong."""
    remaining = iter(graded)
    assert len(graded) == sum(episode.answer is not None for episode in episodes), len(graded)
    return tuple(
        next(remaining)
        if episode.answer is not None
        else Verdict(is_correct=False, judge=FORMAT_RULE, reason=f"no answer: {episode.status.value}")
        for episode in episodes
    )
