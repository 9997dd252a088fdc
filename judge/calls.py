"""Calls to the LLM about one answer, until it has its outcome: tries and their deadline, limits, outages, cold starts.

One call is one answer everywhere: limits admit it, Ray Serve counts it, the endpoint bills it.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol, Self

from actors.errors import JudgeError
from configs.judges import JudgeConfig
from judge.clock import loop_time
from judge.counts import JudgeCounts
from judge.limits import Limits, most_usage
from judge.outages import PROBE, Breaker
from judge.verdict import (
    AVAILABILITY,
    FINAL,
    Failure,
    JudgeRequest,
    NoVerdict,
    Outcome,
    Verdict,
    check_reply,
    failure_of,
)

MAX_OUTAGES = 8
"""Outages that calls about one answer may end in: one that takes its judge down whenever it is asked is given up."""
FIRST_BACKOFF_S = 0.25
MAX_BACKOFF_S = 8.0
MIN_CALL_S = 0.001
"""Less time than this is none."""
_NOBODY: Outcome = NoVerdict(reason="no judge replied")


class JudgeHandle(Protocol):
    """One call to whichever judge is free."""

    async def grade(self, request: JudgeRequest) -> object:
        """Its reply about one prediction, not yet checked. Raises JudgeError where another try may help."""
        ...


@dataclass(slots=True, kw_only=True)
class Tries:
    """So many tries within so many seconds of asking.

    A call that is turned away (429) while others are under way is no try: it says that these are too many.
    """

    num_left: int
    left_s: float
    num_calls: int = 0

    @classmethod
    def of(cls, config: JudgeConfig) -> Self:
        return cls(num_left=config.max_tries, left_s=config.timeout_s)

    @property
    def are_used_up(self) -> bool:
        return self.num_left <= 0 or self.left_s < MIN_CALL_S


class LLMCalls:
    """One per run: it sees every call, so it can tell an outage from a bad request and hold limits for all replicas.

    Args:
        wake: has an LLM up that the cluster may have scaled to none, within a deadline of its own. Awaited before the
            first call, and after half of `judge.cluster.downscale_delay_s` without any.
        warn: tells a person why the run waits.
    """

    def __init__(
        self,
        handle: JudgeHandle,
        config: JudgeConfig,
        *,
        wake: Callable[[], Awaitable[None]] | None,
        warn: Callable[[str], None],
    ) -> None:
        self._handle = handle
        self._config = config
        self._wake = wake
        self._waking = asyncio.Lock()
        self._last_call_at = -math.inf
        self._breaker = Breaker(self._probe, max_pause_s=config.max_pause_s, warn=warn)
        self._limits = Limits(config, warn=warn)
        self._counts = JudgeCounts()

    @property
    def counts(self) -> JudgeCounts:
        """What all calls have taken until now."""
        return replace(self._counts, paused_s=self._breaker.paused_s)

    async def ask(self, request: JudgeRequest) -> Outcome:
        """A verdict on the one prediction of a request, or the reason why there is none.

        Where tries were used up for want of a judge, the answer is at fault only if others met the judges meanwhile, or
        if probes found them twice. Otherwise it is an outage, after which it starts over, a few times.

        Raises:
            JudgeError: the judges were away for longer than `max_pause_s`, or did not wake up in time.
        """
        breaker, tries, outcome = self._breaker, Tries.of(self._config), _NOBODY
        num_outages, num_met, is_second_chance = breaker.num_outages, 0, False
        while True:
            await breaker.closed()
            if breaker.num_outages > num_outages:
                num_outages = breaker.num_outages
                num_met += tries.num_calls > 0
                if num_met >= MAX_OUTAGES:
                    return outcome
                tries, is_second_chance = Tries.of(self._config), False
            elif tries.are_used_up:  # and a probe found the judges there
                if is_second_chance:
                    return outcome
                tries, is_second_chance = Tries.of(self._config), True
            num_successes, is_retry = breaker.num_successes, outcome is not _NOBODY
            outcome = await self._try(request, tries, is_retry=is_retry) or outcome
            failure = failure_of(outcome)
            if failure is None or failure in FINAL:
                return outcome
            if tries.are_used_up:
                if failure not in AVAILABILITY or breaker.num_successes > num_successes:
                    return outcome
                breaker.trip()

    async def _try(self, request: JudgeRequest, tries: Tries, *, is_retry: bool) -> Outcome | None:
        """One call, after a pause if it is not the first, in its turn. None: an outage has begun, or time is over."""
        pause_s = min(tries.left_s, backoff_s(tries.num_calls, random.random()))
        await asyncio.sleep(pause_s)
        tries.left_s -= pause_s
        await self._awake()
        async with self._limits.admitted(most_usage(request, self._config)) as admission:
            if self._breaker.is_open or tries.are_used_up:
                self._limits.settle(admission, None)
                return None
            started = loop_time()
            outcome = await self._call(request, tries.left_s, is_retry=is_retry)
            tries.left_s -= loop_time() - started
            self._limits.settle(admission, outcome)
        is_too_many = failure_of(outcome) is Failure.THROTTLED and admission.num_under_way > 1
        tries.num_calls += 1
        tries.num_left -= not is_too_many
        if isinstance(outcome, Verdict):
            self._breaker.succeeded()
        elif outcome.failure in AVAILABILITY and not is_too_many:
            self._breaker.failed()
        return outcome

    async def _awake(self) -> None:
        """An engine that the cluster has scaled to none is no outage: it is waited for, once for all who ask."""
        if self._wake is None:
            return
        async with self._waking:
            idle_s = loop_time() - self._last_call_at
            if not self._limits.num_under_way and idle_s >= self._config.cluster.downscale_delay_s / 2:
                await self._wake()
                self._last_call_at = loop_time()

    async def _call(self, request: JudgeRequest, timeout_s: float, *, is_retry: bool = False) -> Outcome:
        """One round trip, counted. What a call took that brought no reply is estimated."""
        started, lost = loop_time(), replace(most_usage(request, self._config), num_lost_calls=1)
        queue_s, failure = None, Failure.UNREACHABLE
        try:
            async with asyncio.timeout(timeout_s) as deadline:
                raw = await self._handle.grade(request)
            failure = Failure.UNUSABLE
            reply = check_reply(raw, 1)
        except TimeoutError:
            if not deadline.expired():
                raise
            outcome: Outcome = NoVerdict(reason=f"no verdict within {self._config.timeout_s:g} s", usage=lost)
        except JudgeError as error:
            outcome = NoVerdict(reason=str(error), failure=failure, usage=lost)
        else:
            (outcome,) = reply.outcomes
            outcome = replace(outcome, usage=lost) if outcome.usage.num_lost_calls else outcome
            queue_s = max(0.0, loop_time() - started - reply.service_s)
        self._last_call_at = loop_time()
        self._counts += replace(
            JudgeCounts.of_usage(outcome.usage, self._config.llm),
            num_calls=1,
            num_retries=int(is_retry),
            num_throttled=int(failure_of(outcome) is Failure.THROTTLED),
            num_replies=int(queue_s is not None),
            queue_s=queue_s or 0.0,
        )
        return outcome

    async def _probe(self) -> Outcome:
        """One settled question, past the limits, but not before the endpoint wants to hear of anybody."""
        await asyncio.sleep(self._limits.rest_s())
        outcome = await self._call(PROBE, max(self._config.timeout_s, self._config.llm.try_timeout_s))
        self._limits.rest(outcome)
        return outcome


def backoff_s(num_calls: int, jitter: float) -> float:
    """Seconds to wait before the next try: doubling from `FIRST_BACKOFF_S`, spread so that callers come back apart.

    Args:
        num_calls: that did not bring a verdict; after none there is nothing to wait for.
        jitter: in [0, 1); the wait is between half and all of the doubled time.
    """
    if num_calls == 0:
        return 0.0
    longest = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** (num_calls - 1))
    return longest * (0.5 + jitter / 2)
