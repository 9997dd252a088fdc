"""The caller's side of the judges: tries, one deadline, and what stands in when no verdict could be had.

Pure asyncio behind a Protocol. What reaches the judges, and which of its failures are worth another try, is the
business of the handle (`judge.deployment`): it raises `JudgeError` for those and lets bugs through.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, replace
from typing import Protocol

from actors.errors import JudgeError
from configs.judges import JudgeConfig
from judge.verdict import JudgeRequest, NoVerdict, Outcome, check_reply

FIRST_BACKOFF_S = 0.25
MAX_BACKOFF_S = 8.0


class JudgeHandle(Protocol):
    """One call to whichever judge is free."""

    async def grade(self, request: JudgeRequest) -> object:
        """The judge's reply, not yet checked.

        Raises:
            JudgeError: the call failed in a way that another try may mend.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeCounts:
    """What judging has taken since the pool came up."""

    num_groups: int = 0
    num_calls: int = 0
    """Calls to judges, retries included."""
    num_retries: int = 0
    num_unjudged: int = 0
    """Predictions that ended without a verdict."""
    total_s: float = 0.0
    """Seconds of all groups added up; groups are judged at the same time."""


class JudgePool:
    """Grades groups. A group that fails is a group of `NoVerdict`: never an exception, never wrong answers."""

    def __init__(self, handle: JudgeHandle, config: JudgeConfig) -> None:
        self._handle = handle
        self._config = config
        self.counters = JudgeCounts()

    async def grade(self, request: JudgeRequest) -> tuple[Outcome, ...]:
        """One outcome per prediction, within `timeout_s` whatever the judges do.

        Equal predictions are judged once and share their verdict. Only those without a verdict are tried again.
        """
        started = time.monotonic()
        outcomes: dict[str, Outcome] = dict.fromkeys(request.predictions, NoVerdict(reason="no judge replied"))
        try:
            async with asyncio.timeout(self._config.timeout_s) as deadline:
                await self._judge_into(outcomes, request)
        except TimeoutError:
            if not deadline.expired():
                raise
            for prediction in _undecided(outcomes):
                outcomes[prediction] = NoVerdict(reason=f"no verdict within {self._config.timeout_s:g} s")
        graded = tuple(outcomes[prediction] for prediction in request.predictions)
        self._add(
            num_groups=1,
            num_unjudged=sum(isinstance(outcome, NoVerdict) for outcome in graded),
            total_s=time.monotonic() - started,
        )
        return graded

    async def _judge_into(self, outcomes: dict[str, Outcome], request: JudgeRequest) -> None:
        """Fill in verdicts, try by try, until all are there or the tries are used up."""
        for num_failed_tries in range(self._config.max_tries):
            predictions = _undecided(outcomes)
            if not predictions:
                return
            if num_failed_tries:
                self._add(num_retries=1)
                await asyncio.sleep(backoff_s(num_failed_tries, random.random()))
            self._add(num_calls=1)
            reply: tuple[Outcome, ...]
            try:
                reply = check_reply(
                    await self._handle.grade(replace(request, predictions=predictions)), len(predictions)
                ).outcomes
            except JudgeError as error:
                reply = (NoVerdict(reason=str(error)),) * len(predictions)
            outcomes.update(zip(predictions, reply, strict=True))

    def _add(
        self,
        *,
        num_groups: int = 0,
        num_calls: int = 0,
        num_retries: int = 0,
        num_unjudged: int = 0,
        total_s: float = 0.0,
    ) -> None:
        so_far = self.counters
        self.counters = JudgeCounts(
            num_groups=so_far.num_groups + num_groups,
            num_calls=so_far.num_calls + num_calls,
            num_retries=so_far.num_retries + num_retries,
            num_unjudged=so_far.num_unjudged + num_unjudged,
            total_s=so_far.total_s + total_s,
        )


def backoff_s(num_failed_tries: int, jitter: float) -> float:
    """Seconds to wait before the next try: doubling from `FIRST_BACKOFF_S`, spread so that callers come back apart.

    Args:
        num_failed_tries: 1 or more.
        jitter: in [0, 1); the wait is between half and all of the doubled time.
    """
    longest = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** (num_failed_tries - 1))
    return longest * (0.5 + jitter / 2)


def _undecided(outcomes: dict[str, Outcome]) -> tuple[str, ...]:
    return tuple(prediction for prediction, outcome in outcomes.items() if isinstance(outcome, NoVerdict))
