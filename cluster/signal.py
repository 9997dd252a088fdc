"""Detects steps in which almost all groups have zero variance, warns, and may end the run.

Where all G rewards of a group are equal, its advantages are 0. A policy that has mastered a task, or cannot solve it at
all, produces almost only such groups. The few others are mostly noise, and training on them drifts.
"""

from __future__ import annotations

from dataclasses import dataclass

STARVED_SHARE = 0.25
"""A step is starved if fewer than this fraction of `train.prompts_per_step` groups have a signal after all draws."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSignal:
    """How many of a step's groups had a signal."""

    step: int
    num_trained: int
    num_scored: int
    num_wanted: int

    @property
    def is_starved(self) -> bool:
        return self.num_trained < STARVED_SHARE * self.num_wanted


class SignalWatch:
    """Counts consecutive starved steps.

    Args:
        stop_after: end the run after this many; 0 never does (`train.stop_without_signal`).
    """

    def __init__(self, *, stop_after: int) -> None:
        self._stop_after = stop_after
        self.num_steps = 0
        self._num_starved = 0
        self._num_trained = 0

    @property
    def should_stop(self) -> bool:
        return 0 < self._stop_after <= self._num_starved

    @property
    def never_had_signal(self) -> bool:
        """Whether no step so far had a group to train on."""
        return self.num_steps > 0 and self._num_trained == 0

    def add(self, signal: StepSignal) -> str | None:
        """Record a step; returns a warning for the user, once per sequence of starved steps."""
        self.num_steps += 1
        self._num_trained += signal.num_trained
        self._num_starved = self._num_starved + 1 if signal.is_starved else 0
        had = f"{signal.num_trained} of {signal.num_scored} groups had a signal (differing rewards)"
        if self.should_stop:
            return f"step {signal.step}: {had}, step {self._num_starved} in a row below a quarter: the run stops here"
        if signal.num_trained == 0:
            return f"step {signal.step}: no group to train on: {had}; the weights are unchanged"
        if self._num_starved == 1:
            return (
                f"step {signal.step}: {had}: these prompts give little training signal; "
                f"train.stop_without_signal=N ends a run after N such steps"
            )
        return None


NO_SIGNAL_CAUSES = (
    "no step had a group to train on, so the policy did not change. Likely causes: prompts that are always or never "
    "answered correctly (see reward/accuracy), a judge that gives every answer the same verdict (`visionthink judge "
    "check`), or rollout.temperature near 0"
)
"""Warning at the end of a run without any training signal."""
