"""What a step of the main loop yields: groups on their way from a prompt to the learner, and the batch they make up."""

from __future__ import annotations

from dataclasses import dataclass

from actors.data.dataset import CursorState
from actors.episode import PlayedGroup, SampleRef
from configs.schema import Config
from judge.reward import Reward
from judge.verdict import Outcome
from learner.advantage import has_signal
from learner.batch import TrainingGroup


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
        """Whether its rewards differ, so that there is something to learn from it."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """What one step learns from, and everything that was drawn for it."""

    trained: tuple[ScoredGroup, ...]
    without_signal: tuple[ScoredGroup, ...]
    """Zero-variance groups: all rewards are equal."""
    lost: tuple[LostGroup, ...]
    drawn: tuple[SampleRef, ...]
    """In the cursor's order: the ledger of consumed samples."""
    cursor: CursorState
    """The cursor after the last of these draws."""
    seconds: float
    judge_wait_s: float = 0.0
    """Of these, the seconds in which nothing was played and only verdicts were awaited."""

    @property
    def scored(self) -> tuple[ScoredGroup, ...]:
        return self.trained + self.without_signal
