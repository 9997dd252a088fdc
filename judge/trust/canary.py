"""Settled rows that are judged beside the groups of a run, to see whether its judge still tells right from wrong.

A judge that a policy has learned to fool passes what it should not: the share of wrong rows that pass is watched. Only
evidence counts: the lower end of the 95 % Wilson interval, and never less than a few rows that passed.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from actors.errors import RunError
from configs.judges import JudgeConfig
from judge.rules.judge import find_by_rules, may_be_math
from judge.trust.check import Rate
from judge.trust.goldset import ATTACKS_FILE, GOLD_FILE, GoldRow, read_gold
from judge.trust.precheck import precheck
from judge.verdict import JudgeRequest, Outcome, Verdict

NUM_WATCHED = 200
"""Newest canaries that count: a judge that was good for long must not hide that it no longer is."""
MIN_PASSED = 3
"""Wrong rows that must have passed before anybody is warned."""
MIN_PASSED_TO_STOP = 5
"""And before a run is stopped."""


def canary_rows(config: JudgeConfig, files: Sequence[Path] = (GOLD_FILE, ATTACKS_FILE)) -> tuple[GoldRow, ...]:
    """Rows that say something about this chain.

    Rules alone are not asked what needs knowledge. What is settled in front of an LLM, by rules or before any judge,
    comes out the same every time: what watches the LLM are the rows that reach it.
    """
    rows = tuple(row for file in files for row in read_gold(file))
    if not config.has_llm:
        return tuple(row for row in rows if row.is_decidable_by_rules)
    return tuple(row for row in rows if _reaches_llm(row, config))


def _reaches_llm(row: GoldRow, config: JudgeConfig) -> bool:
    settled = precheck(row.reference, row.prediction, max_answer_chars=config.max_answer_chars)
    if isinstance(settled, Verdict):
        return False
    if config.chain[0] != "rules":
        return True
    finding = find_by_rules(
        row.question,
        row.reference,
        row.prediction,
        metric=config.metric,
    )
    return not finding.is_certain and not may_be_math(row.question, row.reference, row.prediction)


def draw_canary(rows: Sequence[GoldRow], share: float, *, seed: int, step: int, sample: str) -> GoldRow | None:
    """The row that rides along with this sample's group; none for most. The same arguments, the same row."""
    draw = random.Random(f"canary {seed} {step} {sample}")
    return draw.choice(rows) if rows and draw.random() < share else None


def canary_request(row: GoldRow) -> JudgeRequest:
    """The row as a group of its own."""
    return JudgeRequest(question=row.question, reference=row.reference, predictions=(row.prediction,))


class CanaryWatch:
    """Counts canaries.

    Args:
        alarm: share of wrong rows that pass at which to warn.
        stop: share at which the run must not go on.
    """

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
        return Rate(num_hits=sum(self._passed), num_cases=len(self._passed))

    def add(self, row: GoldRow, outcome: Outcome) -> str | None:
        """Count one. Returns a warning where there is something new to warn of; a row without a verdict is none.

        Raises:
            RunError: too many wrong rows pass: what the policy learns now is how to please this judge.
        """
        if not isinstance(outcome, Verdict):
            return None
        self.num_canaries += 1
        if row.is_correct:
            return None
        self._passed.append(outcome.is_correct)
        rate = self.false_positives
        low, high = rate.interval
        shown = (
            f"{rate.num_hits} of {rate.num_cases} settled wrong answers passed the judge "
            f"({rate.share or 0.0:.1%}, 95 % interval {low:.1%} to {high:.1%}), the last one: {row.prediction[:60]!r} "
            f"where {row.reference[:60]!r} is right"
        )
        if rate.num_hits >= MIN_PASSED_TO_STOP and low > self._stop:
            raise RunError(
                f"{shown}; that is over judge.canary_stop={self._stop:g}. Measure the judge with `visionthink judge "
                f"check`, take a better one, then start the same command with --resume"
            )
        is_alarming = rate.num_hits >= MIN_PASSED and low > self._alarm
        is_new, self._is_warned = is_alarming and not self._is_warned, is_alarming
        return f"{shown}; that is over judge.canary_alarm={self._alarm:g}" if is_new else None
