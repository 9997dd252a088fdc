"""Limits on calls to the LLM, one set per run whatever the number of replicas. Every call is admitted by itself.

Calls under way follow additive increase, multiplicative decrease (D.-M. Chiu and R. Jain, 1989): a 429 halves their
number, success raises it step by step. Calls and tokens per minute are token buckets: a call reserves what it may take
and settles by what it took.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass

from configs.judges import JudgeConfig
from judge.clock import loop_time
from judge.verdict import Failure, JudgeRequest, NoVerdict, Outcome, Usage, Verdict

BURST_SHARE = 0.05
"""Share of a minute's quota that may be spent at once. Refilling gives the rest, so no minute sees more than all, as
long as no amount is above the bucket's size; one that is adds what it lacks, once."""
CHARS_PER_TOKEN = 3.0
PROMPT_TOKENS = 300
"""Of the judge's instructions, before the first reply tells better."""
ROUNDING = 1e-9


def most_usage(request: JudgeRequest, config: JudgeConfig) -> Usage:
    """What a call about one prediction may take; what the endpoint counts replaces it afterwards."""
    (prediction,), caps = request.predictions, config.llm
    num_chars = sum(min(len(text), caps.max_field_chars) for text in (request.question, request.reference))
    num_chars += min(len(prediction), config.max_answer_chars)
    prompt_tokens = PROMPT_TOKENS + math.ceil(num_chars / CHARS_PER_TOKEN)
    return Usage(num_calls=1, prompt_tokens=prompt_tokens, reply_tokens=caps.max_reply_tokens)


class TokenBucket:
    """A bound per minute. An amount above the bucket's size waits for a full one and leaves a debt."""

    def __init__(self, per_minute: float) -> None:
        self._size = BURST_SHARE * per_minute
        self._refill_per_s = (1 - BURST_SHARE) * per_minute / 60
        self._level = self._size
        self._level_at: float | None = None

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be taken."""
        self._refill(now)
        missing = min(amount, self._size) - self._level
        return missing / self._refill_per_s if missing > ROUNDING * self._size else 0.0

    def take(self, amount: float, now: float) -> None:
        """Spend; a negative amount gives back what was reserved in vain."""
        self._refill(now)
        self._level = min(self._size, self._level - amount)

    def _refill(self, now: float) -> None:
        if self._level_at is not None:
            self._level = min(self._size, self._level + (now - self._level_at) * self._refill_per_s)
        self._level_at = now


class Window:
    """How many calls may be under way: halved by a 429, raised by one when a whole window of calls succeeded."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.size = float(most)
        self.num_cuts = 0

    def throttled(self, num_cuts_before: int) -> None:
        """Calls that went out after the same number of cuts are turned away together: they halve the limit once."""
        if num_cuts_before == self.num_cuts:
            self.size = max(1.0, self.size / 2)
            self.num_cuts += 1

    def succeeded(self) -> None:
        self.size = min(float(self._most), self.size + 1 / self.size)


@dataclass(frozen=True, slots=True)
class Admission:
    """A call's place. Not settled, it has spent all it reserved."""

    reserved: Usage
    num_under_way: int
    """Calls under way when it was let out, itself among them."""
    num_cuts: int
    """Of the window then."""


class Limits:
    """Admits calls in the order they came."""

    def __init__(self, config: JudgeConfig) -> None:
        llm = config.llm
        self._window = Window(llm.max_concurrent)
        self._calls = TokenBucket(llm.requests_per_minute) if llm.requests_per_minute else None
        self._tokens = TokenBucket(llm.tokens_per_minute) if llm.tokens_per_minute else None
        self._max_rest_s = config.max_pause_s
        self._opens_at = -math.inf
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self.num_under_way = 0

    @property
    def limit(self) -> int:
        """Calls that may be under way now."""
        return int(self._window.size)

    def rest_s(self) -> float:
        """Seconds that the endpoint still wants to be left alone."""
        return max(0.0, self._opens_at - loop_time())

    def rest(self, outcome: Outcome) -> None:
        """Admit nobody for as long as the endpoint asked, but not for ever."""
        if isinstance(outcome, NoVerdict) and outcome.retry_after_s:
            self._opens_at = max(self._opens_at, loop_time() + min(outcome.retry_after_s, self._max_rest_s))

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
            yield Admission(usage, self.num_under_way, self._window.num_cuts)
        finally:
            self.num_under_way -= 1
            self._changed.set()

    def settle(self, admission: Admission, outcome: Outcome | None) -> None:
        """Put what the call took in place of what was reserved, and learn from how it went.

        Args:
            outcome: None where no call was made after all.
        """
        self._spend(outcome.usage if outcome else Usage(), admission.reserved)
        if isinstance(outcome, Verdict):
            self._window.succeeded()
        elif outcome is not None:
            if outcome.failure is Failure.THROTTLED:
                self._window.throttled(admission.num_cuts)
            self.rest(outcome)

    def _wait_s(self, usage: Usage) -> float:
        """Seconds until it is worth looking again; infinite where only the end of another call helps."""
        if self.num_under_way >= self.limit:
            return math.inf
        now = loop_time()
        return max(
            self.rest_s(),
            self._calls.wait_s(usage.num_calls, now) if self._calls else 0.0,
            self._tokens.wait_s(usage.num_tokens, now) if self._tokens else 0.0,
        )

    def _spend(self, spent: Usage, reserved: Usage) -> None:
        now = loop_time()
        if self._calls:
            self._calls.take(spent.num_calls - reserved.num_calls, now)
        if self._tokens:
            self._tokens.take(spent.num_tokens - reserved.num_tokens, now)
