"""How far a judge can be trusted: its verdicts on settled rows against the verdicts of people.

Rates come with 95 % Wilson score intervals (E. B. Wilson, 1927), which stay inside [0, 1] and are honest at 0 errors.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from actors.errors import JudgeError
from judge.trust.goldset import GoldRow
from judge.verdict import Judge, JudgeRequest, NoVerdict, Outcome, Verdict, check_outcomes

Z_95 = 1.959963984540054
MAX_CONCURRENT = 16
"""Rows asked about at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A share of cases. `share` is None where there was no case."""

    num_hits: int
    num_cases: int

    @property
    def share(self) -> float | None:
        return self.num_hits / self.num_cases if self.num_cases else None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson score interval; (0, 1) of no case."""
        return wilson_interval(self.num_hits, self.num_cases)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRow:
    row: GoldRow
    outcome: Outcome
    seconds: float
    """From question to outcome, waits for other rows excluded."""

    @property
    def agrees(self) -> bool | None:
        """None where there is no verdict."""
        return self.outcome.is_correct == self.row.is_correct if isinstance(self.outcome, Verdict) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Figures of a judge on a set of rows. A row without a verdict is in none of the rates, only counted."""

    agreement: Rate
    """Same verdict as people."""
    false_positives: Rate
    """Wrong answers that passed, of the wrong answers."""
    false_negatives: Rate
    """Right answers that failed, of the right answers."""
    num_unjudged: int
    median_s: float
    p95_s: float


def wilson_interval(num_hits: int, num_cases: int, z: float = Z_95) -> tuple[float, float]:
    """Interval of a share that was seen `num_hits` times in `num_cases`."""
    assert 0 <= num_hits <= num_cases, (num_hits, num_cases)
    if num_cases == 0:
        return 0.0, 1.0
    share, spread = num_hits / num_cases, z * z / num_cases
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / num_cases + spread / (4 * num_cases))
    # The bounds at no hit and at hits alone are exact; rounding must not push them past the share itself.
    low = 0.0 if num_hits == 0 else max(0.0, centre - half)
    return low, 1.0 if num_hits == num_cases else min(1.0, centre + half)


async def check_rows(judge: Judge, rows: Sequence[GoldRow], *, timeout_s: float) -> tuple[CheckedRow, ...]:
    """Ask a judge about each row by itself, in the order of the rows. A failure is a `NoVerdict`.

    Args:
        timeout_s: deadline for one row.
    """
    free = asyncio.Semaphore(MAX_CONCURRENT)

    async def check(row: GoldRow) -> CheckedRow:
        async with free:
            started = time.monotonic()
            outcome = await _judge_row(judge, row, timeout_s)
            return CheckedRow(row=row, outcome=outcome, seconds=time.monotonic() - started)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(check(row)) for row in rows]
    return tuple(task.result() for task in tasks)


async def _judge_row(judge: Judge, row: GoldRow, timeout_s: float) -> Outcome:
    request = JudgeRequest(question=row.question, reference=row.reference, predictions=(row.prediction,))
    try:
        async with asyncio.timeout(timeout_s) as deadline:
            return check_outcomes(await judge.grade(request), 1)[0]
    except JudgeError as error:
        return NoVerdict(reason=str(error))
    except TimeoutError:
        if not deadline.expired():
            raise
        return NoVerdict(reason=f"no verdict within {timeout_s:g} s")


def measure(checked: Sequence[CheckedRow]) -> Trust:
    """Rates and latency of checked rows."""
    judged = [row for row in checked if row.agrees is not None]
    seconds = sorted(row.seconds for row in checked)
    return Trust(
        agreement=_rate(judged),
        false_positives=_errors(row for row in judged if not row.row.is_correct),
        false_negatives=_errors(row for row in judged if row.row.is_correct),
        num_unjudged=len(checked) - len(judged),
        median_s=percentile(seconds, 0.5),
        p95_s=percentile(seconds, 0.95),
    )


def by_kind(checked: Iterable[CheckedRow]) -> dict[str, Trust]:
    """Figures of each kind of row, kinds in the order of their first row."""
    kinds: dict[str, list[CheckedRow]] = {}
    for row in checked:
        kinds.setdefault(row.row.kind, []).append(row)
    return {kind: measure(rows) for kind, rows in kinds.items()}


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that `share` of the ordered values do not exceed; 0 of nothing."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def _rate(rows: Sequence[CheckedRow]) -> Rate:
    return Rate(num_hits=sum(row.agrees is True for row in rows), num_cases=len(rows))


def _errors(rows: Iterable[CheckedRow]) -> Rate:
    found = list(rows)
    return Rate(num_hits=sum(row.agrees is False for row in found), num_cases=len(found))
