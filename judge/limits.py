"""Limits on calls to the LLM, one set per run whatever the number of replicas. Every call is admitted by itself.

Calls under way follow additive increase, multiplicative decrease (D.-M. Chiu and R. Jain, 1989): a 429 halves their
number, success raises it step by step. Calls and tokens per minute are metered: a call reserves what it may take and
settles by what it took.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from configs.judges import JudgeConfig
from judge.verdict import Failure, JudgeRequest, NoVerdict, Outcome, Usage, Verdict

BURST_SHARE = 0.05
"""Share of a minute's quota that may be spent at once; time gives the rest, so no minute sees more than all."""
CHARS_PER_TOKEN = 3.0
PROMPT_TOKENS = 300  # of the judge's instructions
LONG_REST_S = 10.0  # a person will notice
ROUNDING_S = 1e-9


def loop_time() -> float:
    """Seconds on the running loop's clock, which its sleeps and deadlines go by as well. Monotonic."""
    return asyncio.get_running_loop().time()


def most_usage(request: JudgeRequest, config: JudgeConfig) -> Usage:
    """What a call about one prediction may take; what the endpoint counts replaces it afterwards."""
    (prediction,), caps = request.predictions, config.llm
    num_chars = sum(min(len(text), caps.max_field_chars) for text in (request.question, request.reference))
    num_chars += min(len(prediction), config.max_answer_chars)
    prompt_tokens = PROMPT_TOKENS + math.ceil(num_chars / CHARS_PER_TOKEN)
    return Usage(num_calls=1, prompt_tokens=prompt_tokens, reply_tokens=caps.max_reply_tokens)


class Meter:
    """A bound per minute, 0 for none: a leaky bucket, kept as the moment when all that was spent is paid for.

    An amount above a burst waits until nothing is owed, and is paid for afterwards.
    """

    def __init__(self, per_minute: float) -> None:
        self._seconds_each = 60 / ((1 - BURST_SHARE) * per_minute) if per_minute else 0.0
        self._burst_s = 60 * BURST_SHARE / (1 - BURST_SHARE)
        self._paid_at = -math.inf

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be spent."""
        wait_s = max(self._paid_at, now) + min(amount * self._seconds_each, self._burst_s) - self._burst_s - now
        return wait_s if wait_s > ROUNDING_S else 0.0

    def spend(self, amount: float, now: float) -> None:
        """A negative amount gives back what was reserved in vain."""
        self._paid_at = max(self._paid_at, now) + amount * self._seconds_each


@dataclass(frozen=True, slots=True)
class Admission:
    """A call's place. Not settled, it has spent all it reserved."""

    reserved: Usage
    num_under_way: int  # calls under way when it was let out, itself among them
    num_cuts: int  # how often the limit had been halved by then


class Limits:
    """Admits calls in the order they came.

    Args:
        warn: tells a person that the endpoint asked for a long rest (Retry-After).
    """

    def __init__(self, config: JudgeConfig, *, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._most = float(config.llm.max_concurrent)
        self._window = self._most
        self._num_cuts = 0
        self._calls, self._tokens = Meter(config.llm.requests_per_minute), Meter(config.llm.tokens_per_minute)
        self._max_rest_s = config.max_pause_s
        self._opens_at = -math.inf
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self.num_under_way = 0

    @property
    def limit(self) -> int:
        """Calls that may be under way now."""
        return int(self._window)

    def rest_s(self) -> float:
        """Seconds that the endpoint still wants to be left alone."""
        return max(0.0, self._opens_at - loop_time())

    def rest(self, outcome: Outcome) -> None:
        """Admit nobody for as long as the endpoint asked, but not for ever."""
        if isinstance(outcome, NoVerdict) and outcome.retry_after_s:
            before_s, rest_s = self.rest_s(), min(outcome.retry_after_s, self._max_rest_s)
            self._opens_at = max(self._opens_at, loop_time() + rest_s)
            if rest_s >= LONG_REST_S > before_s:
                self._warn(f"the judge's endpoint asked to retry after {rest_s:.0f} s: judging is paused")

    @contextlib.asynccontextmanager
    async def admitted(self, usage: Usage) -> AsyncIterator[Admission]:
        """Wait for a turn for a call that may take so much, and hold it for the length of the body."""
        async with self._turn:
            while (wait_s := self._wait_s(usage)) > 0:
                self._changed.clear()
                # Not `wait_for`: it loses a cancellation that comes together with the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if wait_s == math.inf else wait_s):
                        await self._changed.wait()
            self.num_under_way += 1
            self._spend(usage, Usage())
        try:
            yield Admission(usage, self.num_under_way, self._num_cuts)
        finally:
            self.num_under_way -= 1
            self._changed.set()

    def settle(self, admission: Admission, outcome: Outcome | None) -> None:
        """Put what a call took in place of what was reserved, and learn from how it went; None: it was not made."""
        self._spend(outcome.usage if outcome else Usage(), admission.reserved)
        if isinstance(outcome, Verdict):
            self._window = min(self._most, self._window + 1 / self._window)
        elif outcome is not None:
            # Calls that went out under the same limit are turned away together: they halve it once.
            if outcome.failure is Failure.THROTTLED and admission.num_cuts == self._num_cuts:
                self._window = max(1.0, self._window / 2)
                self._num_cuts += 1
            self.rest(outcome)

    def _wait_s(self, usage: Usage) -> float:
        """Seconds until it is worth looking again; infinite where only the end of another call helps."""
        if self.num_under_way >= self.limit:
            return math.inf
        now = loop_time()
        metered_s = max(self._calls.wait_s(usage.num_calls, now), self._tokens.wait_s(usage.num_tokens, now))
        return max(self.rest_s(), metered_s)

    def _spend(self, spent: Usage, reserved: Usage) -> None:
        now = loop_time()
        self._calls.spend(spent.num_calls - reserved.num_calls, now)
        self._tokens.spend(spent.num_tokens - reserved.num_tokens, now)
