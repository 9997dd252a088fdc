"""Canaries: settled rows that are judged beside the groups of a run, to see whether its LLM still judges well.

An LLM that a policy has learned to fool passes wrong answers. Only evidence counts: the lower end of the 95 % interval
of their share. Rules do not drift, so canaries are rows that they leave to the LLM; a chain of rules alone has none.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Sequence

from actors.errors import RunError
from judge.trust.check import Rate
from judge.trust.goldset import GoldRow
from judge.verdict import Judge, NoVerdict, Outcome, Verdict

NUM_WATCHED = 200
"""Newest canaries that count: a judge that was good for long must not hide that it no longer is."""
MIN_PASSED, MIN_PASSED_TO_STOP = 3, 5
"""Wrong rows that must have passed before anybody is warned, and before a run is stopped."""


def draw_canaries(rows: Sequence[GoldRow], share: float, *, seed: int, step: int, sample: str) -> list[GoldRow]:
    """Rows to try beside this sample's group, in random order; none for most. The same arguments, the same rows."""
    draw = random.Random(f"canary {seed} {step} {sample}")
    return draw.sample(rows, len(rows)) if draw.random() < share else []


async def first_undecided(rows: Iterable[GoldRow], judges: Sequence[Judge]) -> GoldRow | None:
    """The first row that none of these judges decides: it reaches the LLM behind them."""
    for row in rows:
        outcomes = [outcome for judge in judges for outcome in await judge.grade(row.request)]
        if all(isinstance(outcome, NoVerdict) for outcome in outcomes):
            return row
    return None


class CanaryWatch:
    """Counts canaries. `alarm` and `stop`: shares of wrong rows that pass at which to warn, and to end the run."""

    def __init__(self, *, alarm: float, stop: float) -> None:
        self._alarm = alarm
        self._stop = stop
        self._passed: deque[bool] = deque(maxlen=NUM_WATCHED)
        self._is_warned = False
        self.num_canaries = 0
        """Rows that got a verdict."""

    @property
    def false_positives(self) -> Rate:
        """Of the newest wrong rows, those that passed."""
        return Rate.of(self._passed)

    def add(self, row: GoldRow, outcome: Outcome) -> str | None:
        """Count one. Returns a warning where there is something new to warn of.

        Raises:
            RunError: too many wrong rows pass: what the policy learns now is how to please this judge.
        """
        if not isinstance(outcome, Verdict):
            return None
        self.num_canaries += 1
        if row.is_correct:
            return None
        self._passed.append(outcome.is_correct)
        rate, (low, high) = self.false_positives, self.false_positives.interval
        shown = (
            f"the judge passed {rate.num_hits} of {rate.num_cases} wrong canaries ({rate.share or 0.0:.1%}, 95 % "
            f"interval {low:.1%} to {high:.1%}), the last one {row.prediction[:60]!r} for {row.reference[:60]!r}"
        )
        if rate.num_hits >= MIN_PASSED_TO_STOP and low > self._stop:
            raise RunError(
                f"{shown}; that is over judge.canary_stop={self._stop:g}. Measure the judge with `visionthink judge "
                f"check`, take a better one, then start the same command with --resume"
            )
        is_alarming = rate.num_hits >= MIN_PASSED and low > self._alarm
        is_new, self._is_warned = is_alarming and not self._is_warned, is_alarming
        return f"{shown}; that is over judge.canary_alarm={self._alarm:g}" if is_new else None
