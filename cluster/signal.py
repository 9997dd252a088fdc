"""Whether there is anything left to learn: steps whose groups hardly ever have a signal are noticed, and may end a run.

Where all G rewards of a group are equal, its advantages are 0. A policy that has learned a task, or cannot begin to,
gives almost nothing but such groups. The few that are left are mostly noise, and training on them drifts.
"""

from __future__ import annotations

from dataclasses import dataclass

STARVED_SHARE = 0.25
"""A step is starved where fewer groups than this share of `train.prompts_per_step` have a signal after all draws."""


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
    """Counts starved steps in a row.

    Args:
        stop_after: so many of them end the run; 0 never does (`train.stop_without_signal`).
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
        """Whether no group of any step since the start could be trained on."""
        return self.num_steps > 0 and self._num_trained == 0

    def add(self, signal: StepSignal) -> str | None:
        """Take in a step; returns what a person should be told, once per row of starved steps."""
        self.num_steps += 1
        self._num_trained += signal.num_trained
        self._num_starved = self._num_starved + 1 if signal.is_starved else 0
        had = f"{signal.num_trained} of {signal.num_scored} groups had a signal (rewards that differ)"
        if self.should_stop:
            return f"step {signal.step}: {had}, step {self._num_starved} in a row with so few: the run stops here"
        if signal.num_trained == 0:
            return f"step {signal.step}: no group to train on: {had}; the weights stay as they are"
        if self._num_starved == 1:
            return (
                f"step {signal.step}: {had}: little is left to learn from these prompts; "
                f"train.stop_without_signal=N ends a run after N such steps"
            )
        return None


NO_SIGNAL_CAUSES = (
    "no step had a group to train on: the policy did not change. Likely causes: prompts that are always or never "
    "answered correctly (look at reward/accuracy), a judge that says the same of everything (`visionthink judge "
    "check`), rollout.temperature near 0, or rollout.group_size of 1"
)
"""The warning at the end of a run that learned nothing."""
