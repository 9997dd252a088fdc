"""One prompt to one scored group: play, judge, reward, advantage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors.episode import PlayedGroup, SampleRef, SkippedSample
from actors.errors import RolloutError
from actors.play import PlayRequest
from configs.schema import Config
from judge.pool import JudgePool
from judge.reward import Reward, conduct_of, group_rewards
from judge.verdict import NoVerdict, Outcome, judge_request, spread_outcomes
from learner.advantage import group_advantages, has_signal
from learner.batch import TrainingGroup

if TYPE_CHECKING:
    from cluster.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class UnscoredGroup:
    """A group that was played and waits for its verdicts."""

    played: PlayedGroup
    image: object
    """Handle of the full view, which stays where it was cut until a learner rank needs it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """A played group with what its episodes earned; None where a verdict could not be had."""

    played: PlayedGroup
    outcomes: tuple[Outcome, ...]
    rewards: tuple[Reward | None, ...]
    advantages: tuple[float | None, ...]
    image: object
    """As in `UnscoredGroup`."""

    @property
    def totals(self) -> tuple[float | None, ...]:
        return tuple(None if reward is None else reward.total for reward in self.rewards)

    @property
    def training(self) -> TrainingGroup:
        return TrainingGroup(played=self.played, rewards=self.totals, advantages=self.advantages, image=self.image)

    def has_signal(self, config: Config) -> bool:
        """Whether it has something to teach."""
        return has_signal(self.totals, config.train.min_scored)


@dataclass(frozen=True, slots=True, kw_only=True)
class LostGroup:
    """A prompt that gave no group, and why. It was consumed all the same."""

    ref: SampleRef
    reason: str
    is_skipped_row: bool
    """The row itself is unusable; otherwise a worker or a judge failed."""
    group: ScoredGroup | None = None
    """What there is of it, where only verdicts were missing: another judge may still score it."""


async def play_group(run: Run, config: Config, ref: SampleRef, step: int) -> UnscoredGroup | LostGroup:
    """One prompt -> G two-turn episodes.

    Raises:
        DataError: too many rows are unusable.
    """
    request = PlayRequest(
        ref=ref,
        kind="policy",
        greedy=False,
        num_episodes=config.rollout.group_size,
        run=config.run.name,
        step=step,
        attempt=0,
    )
    try:
        played, image = await run.rollouts.play(request)
    except RolloutError as error:
        return LostGroup(ref=ref, reason=str(error), is_skipped_row=False)
    if isinstance(played, SkippedSample):
        run.skips.add(ref, played.reason)
        return LostGroup(ref=ref, reason=played.reason, is_skipped_row=True)
    run.skips.count_read()
    return UnscoredGroup(played=played, image=image)


async def score_group(run: Run, config: Config, group: UnscoredGroup) -> ScoredGroup | LostGroup:
    """Episodes -> verdicts -> rewards -> advantages.

    Raises:
        JudgeError: an outage of the judges outlasted its limit.
    """
    played = group.played
    outcomes = await judge_group(run.judges, played)
    rewards = group_rewards([conduct_of(episode) for episode in played.episodes], outcomes, config.reward)
    totals = [None if reward is None else reward.total for reward in rewards]
    scored = ScoredGroup(
        played=played, outcomes=outcomes, rewards=rewards, advantages=group_advantages(totals), image=group.image
    )
    if sum(total is not None for total in totals) < config.train.min_scored:
        reason = next(outcome.reason for outcome in outcomes if isinstance(outcome, NoVerdict))
        return LostGroup(ref=played.ref, reason=f"too few verdicts: {reason}", is_skipped_row=False, group=scored)
    return scored


async def judge_group(judges: JudgePool, played: PlayedGroup) -> tuple[Outcome, ...]:
    """Outcomes of a group, its answers judged in one call."""
    request = judge_request(played)
    graded = await judges.grade(request) if request.predictions else ()
    return spread_outcomes(played.episodes, graded)
