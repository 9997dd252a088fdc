"""How far a judge can be trusted: its verdicts on settled rows against the verdicts of people.

Rates come with 95 % Wilson score intervals (E. B. Wilson, 1927), which stay inside [0, 1] and are honest at 0 errors.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

from actors.errors import JudgeError
from configs.judges import JudgeConfig
from judge.rules.judge import RulesJudge
from judge.trust.goldset import GoldRow
from judge.verdict import Judge, NoVerdict, Outcome, Verdict, grade_one

Z_95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A share of cases; None of no case."""

    num_hits: int
    num_cases: int

    @property
    def share(self) -> float | None:
        return self.num_hits / self.num_cases if self.num_cases else None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson score interval; (0, 1) of no case."""
        if not self.num_cases:
            return 0.0, 1.0
        share, spread = self.num_hits / self.num_cases, Z_95**2 / self.num_cases
        centre = (share + spread / 2) / (1 + spread)
        half = Z_95 / (1 + spread) * math.sqrt(share * (1 - share) / self.num_cases + spread / (4 * self.num_cases))
        return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))  # in spite of rounding

    @classmethod
    def of(cls, cases: Iterable[bool]) -> Rate:
        hits = list(cases)
        return cls(num_hits=sum(hits), num_cases=len(hits))


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRow:
    row: GoldRow
    outcome: Outcome
    seconds: float
    """From question to outcome, waits for other rows excluded."""

    @property
    def agrees(self) -> bool | None:
        """With people; None where there is no verdict."""
        return self.outcome.is_correct == self.row.is_correct if isinstance(self.outcome, Verdict) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Figures of a judge on a set of rows. A row without a verdict is in none of the rates, only counted."""

    agreement: Rate
    false_positives: Rate  # of the wrong answers
    false_negatives: Rate  # of the right answers
    num_unjudged: int


def certain_rules(config: JudgeConfig) -> Judge:
    """The rules as they judge in front of an LLM, whatever the chain: what is not certain stays undecided."""
    llm = replace(config.llm, model=config.llm.model or "none")
    return RulesJudge.from_config(replace(config, chain=("rules", "openai"), llm=llm))


async def check_rows(judge: Judge, rows: Sequence[GoldRow], *, timeout_s: float) -> tuple[CheckedRow, ...]:
    """Ask a judge about each row by itself, at most `timeout_s` each, in their order. A failure is a `NoVerdict`."""
    free = asyncio.Semaphore(64)

    async def check(row: GoldRow) -> CheckedRow:
        async with free:
            started = time.monotonic()
            try:
                async with asyncio.timeout(timeout_s):
                    outcome = (await grade_one(judge, row.request)).outcome
            except (JudgeError, TimeoutError) as error:
                outcome = NoVerdict(reason=str(error) or f"no verdict within {timeout_s:g} s")
            return CheckedRow(row=row, outcome=outcome, seconds=time.monotonic() - started)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(check(row)) for row in rows]
    return tuple(task.result() for task in tasks)


def measure(checked: Sequence[CheckedRow]) -> Trust:
    """Rates of checked rows."""
    judged = [(item.row.is_correct, bool(item.agrees)) for item in checked if item.agrees is not None]
    return Trust(
        agreement=Rate.of(agrees for _, agrees in judged),
        false_positives=Rate.of(not agrees for is_correct, agrees in judged if not is_correct),
        false_negatives=Rate.of(not agrees for is_correct, agrees in judged if is_correct),
        num_unjudged=len(checked) - len(judged),
    )
