"""Prompts to scored groups: play, judge, reward, advantage. No group waits for another.

A group whose rewards are all equal teaches nothing; it is dropped and another prompt is drawn in its place (DAPO), up
to a bound. A group whose episodes or verdicts were lost to failures is replaced the same way and counted; too many of
them stop the run.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors.dataset import CursorState
from actors.episode import PlayedGroup, SampleRef, SkippedSample
from actors.errors import RolloutError, RunError
from actors.play import PlayRequest
from cluster.waits import VerdictWait
from configs.schema import Config
from judge.pool import JudgePool
from judge.reward import Reward, conduct_of, group_rewards
from judge.verdict import NoVerdict, Outcome, judge_request, spread_outcomes
from learner.advantage import group_advantages, has_signal
from learner.batch import TrainingGroup

if TYPE_CHECKING:
    from cluster.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """A played group with what its episodes earned; None where a verdict could not be had."""

    played: PlayedGroup
    outcomes: tuple[Outcome, ...]
    rewards: tuple[Reward | None, ...]
    advantages: tuple[float | None, ...]
    image: object
    """Handle of the full view, which stays where it was cut until a learner rank needs it."""

    @property
    def training(self) -> TrainingGroup:
        totals = tuple(None if reward is None else reward.total for reward in self.rewards)
        return TrainingGroup(played=self.played, rewards=totals, advantages=self.advantages, image=self.image)


@dataclass(frozen=True, slots=True, kw_only=True)
class LostGroup:
    """A prompt that gave no group, and why. It was consumed all the same."""

    ref: SampleRef
    reason: str
    is_skipped_row: bool
    """The row itself is unusable; otherwise a worker or a judge failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What one trip of the loop learns from, and everything that was drawn for it."""

    trained: tuple[ScoredGroup, ...]
    without_signal: tuple[ScoredGroup, ...]
    lost: tuple[LostGroup, ...]
    drawn: tuple[SampleRef, ...]
    """In the cursor's order: the ledger of consumed samples."""
    cursor: CursorState
    """The cursor after the last draw."""
    seconds: float
    judge_wait_s: float = 0.0
    """Of these, the seconds in which all that was needed had been played and only verdicts were awaited."""

    @property
    def scored(self) -> tuple[ScoredGroup, ...]:
        return self.trained + self.without_signal


async def collect(run: Run, config: Config, step: int) -> Collected:
    """Draw prompts until enough groups have a signal, or the bound on draws is reached."""
    started = time.monotonic()
    wanted, most = config.train.prompts_per_step, int(config.train.max_draws * config.train.prompts_per_step)
    trained: list[ScoredGroup] = []
    without_signal: list[ScoredGroup] = []
    lost: list[LostGroup] = []
    drawn: list[SampleRef] = []
    done: set[asyncio.Task[ScoredGroup | LostGroup]] = set()
    pending: set[asyncio.Task[ScoredGroup | LostGroup]] = set()
    wait = VerdictWait()
    try:
        while len(trained) < wanted:
            missing = min(wanted - len(trained) - len(pending), most - len(drawn))
            for ref in run.prompts.take(max(0, missing)):
                drawn.append(ref)
                pending.add(asyncio.create_task(score_group(run, config, ref, step, wait)))
            if not pending:
                break
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            run.judge_watch.check()
            for group in (task.result() for task in done):
                run.display.group_done()
                match group:
                    case LostGroup():
                        lost.append(group)
                        check_losses(lost, len(drawn), config)
                    case ScoredGroup() if keeps(group, config):
                        trained.append(group)
                    case ScoredGroup():
                        without_signal.append(group)
    finally:
        for task in pending:
            task.cancel()
        # What stops one group may stop others at the same moment: the first error is told, the rest is not news.
        await asyncio.gather(*done, *pending, return_exceptions=True)
    run.judge_watch.ask_replicas()
    return Collected(
        trained=tuple(trained),
        without_signal=tuple(without_signal),
        lost=tuple(lost),
        drawn=tuple(drawn),
        cursor=run.prompts.state(),
        seconds=time.monotonic() - started,
        judge_wait_s=wait.seconds,
    )


def keeps(group: ScoredGroup, config: Config) -> bool:
    """Whether a group has something to teach."""
    totals = [None if reward is None else reward.total for reward in group.rewards]
    return has_signal(totals, config.train.min_scored)


def check_losses(lost: list[LostGroup], num_drawn: int, config: Config) -> None:
    """Stop the run when failures eat more of a step than the config allows. Unusable rows have their own limit."""
    failed = [group for group in lost if not group.is_skipped_row]
    if len(failed) > max(1.0, config.train.max_lost_fraction * num_drawn):
        raise RunError(
            f"{len(failed)} of {num_drawn} groups were lost in one step, over train.max_lost_fraction="
            f"{config.train.max_lost_fraction}; the last one: {failed[-1].reason}"
        )


async def score_group(
    run: Run, config: Config, ref: SampleRef, step: int, wait: VerdictWait
) -> ScoredGroup | LostGroup:
    """One prompt -> G two-turn episodes -> verdicts -> rewards -> advantages."""
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
        with wait.playing():
            played, image = await run.rollouts.play(request)
    except RolloutError as error:
        return LostGroup(ref=ref, reason=str(error), is_skipped_row=False)
    if isinstance(played, SkippedSample):
        run.skips.add(ref, played.reason)
        return LostGroup(ref=ref, reason=played.reason, is_skipped_row=True)
    run.skips.count_read()
    run.judge_watch.ride_along(step, ref.uid)
    with wait.judging():
        outcomes = await judge_group(run.judges, played)
    rewards = group_rewards([conduct_of(episode) for episode in played.episodes], outcomes, config.reward)
    scored = [None if reward is None else reward.total for reward in rewards]
    if sum(total is not None for total in scored) < config.train.min_scored:
        reason = next(outcome.reason for outcome in outcomes if isinstance(outcome, NoVerdict))
        return LostGroup(ref=ref, reason=f"too few verdicts: {reason}", is_skipped_row=False)
    return ScoredGroup(
        played=played, outcomes=outcomes, rewards=rewards, advantages=group_advantages(scored), image=image
    )


async def judge_group(judges: JudgePool, played: PlayedGroup) -> tuple[Outcome, ...]:
    """Outcomes of a group, its answers judged in one call."""
    request = judge_request(played)
    graded = await judges.grade(request) if request.predictions else ()
    return spread_outcomes(played.episodes, graded)
