"""Data types of a step: groups from rollout to learner, and the batch of a step."""

from __future__ import annotations

from dataclasses import dataclass

from actors.data.dataset import CursorState
from actors.episode import PlayedGroup, SampleRef
from configs.schema import Config
from judge.reward import Reward
from judge.verdict import Outcome
from learner.advantage import has_signal
from learner.batches.batch import TrainingGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class UnscoredGroup:
    """A played group that awaits its verdicts."""

    played: PlayedGroup
    image: object
    """Handle of the full view, which stays on its node until a learner rank needs it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """A played group with rewards and advantages; None where an episode has no verdict."""

    played: PlayedGroup
    outcomes: tuple[Outcome, ...]
    rewards: tuple[Reward | None, ...]
    advantages: tuple[float | None, ...]
    image: object
    """As in `UnscoredGroup`."""
    turn_credits: tuple[tuple[float, ...], ...] = ()
    """[G][turns], as in `TrainingGroup`."""

    @property
    def totals(self) -> tuple[float | None, ...]:
        return tuple(None if reward is None else reward.total for reward in self.rewards)

    @property
    def training(self) -> TrainingGroup:
        return TrainingGroup(
            played=self.played,
            rewards=self.totals,
            advantages=self.advantages,
            image=self.image,
            turn_credits=self.turn_credits,
        )

    def has_signal(self, config: Config) -> bool:
        """Whether it has enough verdicts and non-zero reward variance."""
        return has_signal(self.totals, config.train.min_scored)


@dataclass(frozen=True, slots=True, kw_only=True)
class LostGroup:
    """A prompt that yielded no trainable group, and why. It counts as consumed."""

    ref: SampleRef
    reason: str
    is_skipped_row: bool
    """True if the row itself is unusable; otherwise a worker or a judge failed."""
    group: ScoredGroup | None = None
    """The group where only verdicts are missing, so that another judge can still score it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """The groups that one step trains on, and everything that was drawn for it."""

    trained: tuple[ScoredGroup, ...]
    without_signal: tuple[ScoredGroup, ...]
    """Zero-variance groups: all rewards are equal."""
    lost: tuple[LostGroup, ...]
    drawn: tuple[SampleRef, ...]
    """Consumed samples, in the cursor's order."""
    cursor: CursorState
    """The cursor after the last draw."""
    seconds: float
    judge_wait_s: float = 0.0
    """The part of `seconds` in which there were no rollouts and only verdicts were awaited."""

    @property
    def scored(self) -> tuple[ScoredGroup, ...]:
        return self.trained + self.without_signal
