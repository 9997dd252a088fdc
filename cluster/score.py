"""From a prompt to a scored group: rollout, judging, rewards, advantages."""

from __future__ import annotations

from actors.data.dataset import SkipLedger
from actors.episode import SampleRef, SkippedSample
from actors.errors import RolloutError
from actors.play import PlayRequest
from cluster.fleet import Fleet
from cluster.step import LostGroup, ScoredGroup, UnscoredGroup
from configs.schema import Config
from judge.reward import group_rewards
from judge.verdict import NoVerdict
from learner.advantage import group_advantages, turn_credits


async def roll_out(
    fleet: Fleet, config: Config, ref: SampleRef, step: int, skips: SkipLedger
) -> UnscoredGroup | LostGroup:
    """One prompt -> G episodes.

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
        played, image = await fleet.rollouts.play(request)
    except RolloutError as error:
        return LostGroup(ref=ref, reason=str(error), is_skipped_row=False)
    if isinstance(played, SkippedSample):
        skips.add(ref, played.reason)
        return LostGroup(ref=ref, reason=played.reason, is_skipped_row=True)
    skips.count_read()
    return UnscoredGroup(played=played, image=image)


async def score_group(fleet: Fleet, config: Config, group: UnscoredGroup) -> ScoredGroup | LostGroup:
    """Episodes -> verdicts -> rewards -> advantages.

    Raises:
        JudgeError: an outage of the judges outlasted its limit.
    """
    played = group.played
    outcomes = await fleet.judge(played)
    rewards = group_rewards(played.episodes, outcomes, config.reward)
    totals = [None if reward is None else reward.total for reward in rewards]
    objective = config.learner.chosen_objective
    scored = ScoredGroup(
        played=played,
        outcomes=outcomes,
        rewards=rewards,
        advantages=group_advantages(totals, objective.advantage),
        turn_credits=turn_credits(
            [None if reward is None else reward.turn for reward in rewards],
            [len(episode.turns) for episode in played.episodes],
            objective,
        ),
        image=group.image,
    )
    if sum(total is not None for total in totals) < config.train.min_scored:
        reason = next(outcome.reason for outcome in outcomes if isinstance(outcome, NoVerdict))
        return LostGroup(ref=played.ref, reason=f"too few verdicts: {reason}", is_skipped_row=False, group=scored)
    return scored
