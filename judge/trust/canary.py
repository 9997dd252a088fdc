"""Canaries: rows with known verdicts, judged alongside the groups of a run to monitor its LLM judge.

An LLM that the policy has learned to fool passes wrong answers. The criterion is the lower end of the 95 % interval of
its false-positive rate. Rules do not drift, so canaries are rows that rules leave to the LLM; a chain of
rules alone has none.
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
"""Number of latest canaries considered, so that a long good history does not hide a recent change."""
MIN_PASSED, MIN_PASSED_TO_STOP = 3, 5
"""Minimum number of passed wrong rows before a warning, and before a run is stopped."""


def draw_canaries(rows: Sequence[GoldRow], share: float, *, seed: int, step: int, sample: str) -> list[GoldRow]:
    """Candidate canaries for this sample's group, in random order; mostly none. Deterministic in the arguments."""
    draw = random.Random(f"canary {seed} {step} {sample}")
    return draw.sample(rows, len(rows)) if draw.random() < share else []


async def first_undecided(rows: Iterable[GoldRow], judges: Sequence[Judge]) -> GoldRow | None:
    """The first row that none of these judges decides, so that it reaches the LLM."""
    for row in rows:
        outcomes = [outcome for judge in judges for outcome in await judge.grade(row.request)]
        if all(isinstance(outcome, NoVerdict) for outcome in outcomes):
            return row
    return None


class CanaryWatch:
    """Counts canaries. `alarm` and `stop`: false-positive rates at which to warn and to end the run."""

    def __init__(self, *, alarm: float, stop: float) -> None:
        self._alarm = alarm
        self._stop = stop
        self._passed: deque[bool] = deque(maxlen=NUM_WATCHED)
        self._is_warned = False
        self.num_canaries = 0
        """Rows that got a verdict."""

    @property
    def false_positives(self) -> Rate:
        """False-positive rate on the latest wrong rows."""
        return Rate.of(self._passed)

    def add(self, row: GoldRow, outcome: Outcome) -> str | None:
        """Count one canary. Returns a warning if there is a new reason for one.

        Raises:
            RunError: too many wrong rows pass, so the policy would learn to exploit the judge.
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
                f"{shown}; more than judge.canary_stop={self._stop:g}. Measure the judge with `visionthink judge "
                f"check`, choose a better one, then run the same command with --resume"
            )
        is_alarming = rate.num_hits >= MIN_PASSED and low > self._alarm
        is_new, self._is_warned = is_alarming and not self._is_warned, is_alarming
        return f"{shown}; more than judge.canary_alarm={self._alarm:g}" if is_new else None
