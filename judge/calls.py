"""Calls to the LLM about one answer, until it has its outcome: tries and their deadline, limits, outages, cold starts.

One call is one answer everywhere: limits admit it, Ray Serve counts it, the endpoint bills it.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol

from actors.errors import JudgeError
from configs.judges import JudgeConfig
from judge.limits import Limits, loop_time, most_usage
from judge.outages import PROBE, Breaker
from judge.verdict import (
    AVAILABILITY,
    FINAL,
    Failure,
    GradeReply,
    JudgeCounts,
    JudgeRequest,
    NoVerdict,
    Outcome,
    Usage,
    Verdict,
)

MAX_OUTAGES = 8
"""Outages that calls about one answer may end in: one that takes its judge down whenever it is asked is given up."""
FIRST_BACKOFF_S = 0.25
MAX_BACKOFF_S = 8.0
MIN_CALL_S = 0.001  # less time than this is none
_NOBODY: Outcome = NoVerdict(reason="no judge replied")
_LOST = Usage(num_calls=1, num_lost_calls=1)


class JudgeHandle(Protocol):
    """One call to whichever judge is free."""

    async def grade(self, request: JudgeRequest) -> GradeReply:
        """Its reply about one prediction. Raises JudgeError where another try may help."""
        ...


@dataclass(slots=True, kw_only=True)
class Tries:
    """So many tries within so many seconds of asking.

    A call that is turned away (429) while others are under way is no try: it says that these are too many.
    """

    num_left: int
    left_s: float
    num_calls: int = 0

    @property
    def are_used_up(self) -> bool:
        return self.num_left <= 0 or self.left_s < MIN_CALL_S

    def pause_s(self, jitter: float) -> float:
        """Seconds before the next call: doubling up to a limit; jitter in [0, 1) spreads callers to come back apart."""
        longest = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** (self.num_calls - 1)) if self.num_calls else 0.0
        return min(self.left_s, longest * (0.5 + jitter / 2))


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
        breaker, tries, outcome = self._breaker, self._new_tries(), _NOBODY
        num_outages, num_met, is_second_chance = breaker.num_outages, 0, False
        while True:
            await breaker.closed()
            if breaker.num_outages > num_outages:
                num_outages = breaker.num_outages
                num_met += tries.num_calls > 0
                if num_met >= MAX_OUTAGES:
                    return outcome
                tries, is_second_chance = self._new_tries(), False
            elif tries.are_used_up:  # and a probe found the judges there
                if is_second_chance:
                    return outcome
                tries, is_second_chance = self._new_tries(), True
            num_successes, is_retry = breaker.num_successes, outcome is not _NOBODY
            outcome = await self._try(request, tries, is_retry=is_retry) or outcome
            if isinstance(outcome, Verdict) or outcome.failure in FINAL:
                return outcome
            if tries.are_used_up:
                if outcome.failure not in AVAILABILITY or breaker.num_successes > num_successes:
                    return outcome
                breaker.trip()

    def _new_tries(self) -> Tries:
        return Tries(num_left=self._config.max_tries, left_s=self._config.timeout_s)

    async def _try(self, request: JudgeRequest, tries: Tries, *, is_retry: bool) -> Outcome | None:
        """One call, after a pause if it is not the first, in its turn. None: an outage has begun, or time is over."""
        await asyncio.sleep(pause_s := tries.pause_s(random.random()))
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
        is_too_many = outcome.failure is Failure.THROTTLED and admission.num_under_way > 1
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
        started, reply = loop_time(), None
        try:
            async with asyncio.timeout(timeout_s) as deadline:
                reply = await self._handle.grade(request)
            outcome = reply.outcome
        except TimeoutError:
            if not deadline.expired():
                raise
            outcome = NoVerdict(reason=f"no verdict within {self._config.timeout_s:g} s", usage=_LOST)
        except JudgeError as error:
            outcome = NoVerdict(reason=str(error), usage=_LOST)
        if outcome.usage.num_lost_calls:
            outcome = replace(outcome, usage=replace(most_usage(request, self._config), num_lost_calls=1))
        self._last_call_at = loop_time()
        usage, llm = outcome.usage, self._config.llm
        self._counts += JudgeCounts(
            num_calls=1,
            num_retries=int(is_retry),
            num_throttled=int(outcome.failure is Failure.THROTTLED),
            num_llm_calls=usage.num_calls,
            num_lost_calls=usage.num_lost_calls,
            prompt_tokens=usage.prompt_tokens,
            reply_tokens=usage.reply_tokens,
            cost_usd=(usage.prompt_tokens * llm.prompt_price + usage.reply_tokens * llm.reply_price) / 1e6,
            num_replies=int(reply is not None),
            queue_s=max(0.0, loop_time() - started - reply.service_s) if reply else 0.0,
        )
        return outcome

    async def _probe(self) -> Outcome:
        """One settled question, past the limits, but not before the endpoint wants to hear of anybody."""
        await asyncio.sleep(self._limits.rest_s())
        outcome = await self._call(PROBE, max(self._config.timeout_s, self._config.llm.try_timeout_s))
        self._limits.rest(outcome)
        return outcome
