"""Rollout pool and judge pool: everything the main loop needs besides the learner, and all of an evaluation."""

from __future__ import annotations

import time
from dataclasses import dataclass

from actors.episode import PlayedGroup
from actors.fleet.pool import RolloutPool
from judge.pool import JudgePool
from judge.verdict import Outcome, judge_request, spread_outcomes
from learner.group import LearnerGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    rollouts: RolloutPool
    judges: JudgePool

    async def judge(self, played: PlayedGroup) -> tuple[Outcome, ...]:
        """One outcome per episode of a group.

        Raises:
            JudgeError: an outage of the judges outlasted its limit.
        """
        request = judge_request(played)
        graded = await self.judges.grade(request) if request.predictions else ()
        return spread_outcomes(played.episodes, graded)

    async def sync_weights(self, learner: LearnerGroup) -> float:
        """Sync the learner's weights to all rollout workers, as version = optimizer step; returns the seconds.

        Raises:
            LearnerError: the learner could not export them.
            WeightSyncError: no worker received them.
        """
        started = time.monotonic()
        manifest, buckets = await learner.export_weights()
        await self.rollouts.publish(manifest, buckets)
        return time.monotonic() - started
