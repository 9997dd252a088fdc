"""Who may call the LLM now: one gate per run, so that limits hold whatever the number of replicas.

Calls under way follow additive increase, multiplicative decrease (D.-M. Chiu and R. Jain, 1989): a 429 halves their
number, success raises it step by step. Calls and tokens per minute are token buckets. A group reserves what it may
take before its call and settles by what it took. No group should ask for more at a time than the gate lets through at
once (`Gate.num_at_once`): callers ask part by part.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
from collections.abc import AsyncIterator, Sequence

from configs.judges import LLMJudgeConfig
from judge.clock import loop_time
from judge.verdict import Failure, JudgeRequest, NoVerdict, Outcome, Usage, Verdict

BURST_SHARE = 0.05
"""Share of a minute's quota that may be spent at once. Refilling gives the rest, so no minute sees more than all, as
long as no amount is above the bucket's size; one that is adds what it lacks, once."""
CHARS_PER_TOKEN = 3.0
PROMPT_TOKENS = 300
"""Of the judge's instructions, before the first reply tells better."""
ROUNDING = 1e-9


class TokenBucket:
    """A bound per minute. An amount above the bucket's size waits for a full one and leaves a debt."""

    def __init__(self, per_minute: float) -> None:
        self._size = BURST_SHARE * per_minute
        self._refill_per_s = (1 - BURST_SHARE) * per_minute / 60
        self._level = self._size
        self._level_at: float | None = None

    @property
    def size(self) -> float:
        """What may be taken at once without a debt."""
        return self._size

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
        """Calls that were under way together are turned away together: they halve the limit once.

        Args:
            num_cuts_before: `num_cuts` when the call went out.
        """
        if num_cuts_before == self.num_cuts:
            self.size = max(1.0, self.size / 2)
            self.num_cuts += 1

    def succeeded(self, num_calls: int) -> None:
        self.size = min(float(self._most), self.size + num_calls / self.size)


class Admission:
    """A group's place at the gate. Not settled, it has spent all it reserved: nobody knows what a lost call took."""

    def __init__(self, gate: Gate, num_calls: int, num_tokens: int) -> None:
        self._gate = gate
        self._num_calls = num_calls
        self._num_tokens = num_tokens
        self._num_cuts = gate._window.num_cuts
        self.num_under_way = gate.num_under_way
        """Calls under way when this group was let in, its own among them."""

    def settle(self, usage: Usage, outcomes: Sequence[Outcome]) -> None:
        """Put what the call really took in place of what was reserved, and learn from how it went."""
        num_tokens = usage.prompt_tokens + usage.reply_tokens
        self._gate._spend(usage.num_calls - self._num_calls, num_tokens - self._num_tokens)
        self._gate._learn(outcomes, self._num_cuts)


class Gate:
    """Admits groups in the order they came. All numbers are calls to the LLM: one per prediction, not per group.

    Args:
        max_rest_s: longest Retry-After that is obeyed.
    """

    def __init__(
        self, *, max_concurrent: int, requests_per_minute: int = 0, tokens_per_minute: int = 0, max_rest_s: float
    ) -> None:
        self._window = Window(max_concurrent)
        self._calls = TokenBucket(requests_per_minute) if requests_per_minute else None
        self._tokens = TokenBucket(tokens_per_minute) if tokens_per_minute else None
        self._max_rest_s = max_rest_s
        self._opens_at = -math.inf
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self.num_under_way = 0

    @property
    def limit(self) -> int:
        """Calls that may be under way now."""
        return int(self._window.size)

    def num_at_once(self, num_tokens: Sequence[int]) -> int:
        """How many of these calls, the first ones, are let through at once, at least one.

        Args:
            num_tokens: what each call may take, as `estimate_tokens` gives it.
        """
        most = min(self.limit, len(num_tokens))
        if self._calls:
            most = min(most, int(self._calls.size))
        if self._tokens:
            sums = itertools.accumulate(num_tokens)
            most = min(most, sum(total <= self._tokens.size for total in sums))
        return max(1, most)

    def rest_s(self) -> float:
        """Seconds that the endpoint still wants to be left alone."""
        return max(0.0, self._opens_at - loop_time())

    def rest(self, retry_after_s: float | None) -> None:
        """Admit nobody for that long: the endpoint said so."""
        if retry_after_s is not None:
            self._opens_at = max(self._opens_at, loop_time() + min(retry_after_s, self._max_rest_s))

    @contextlib.asynccontextmanager
    async def admitted(self, num_calls: int, num_tokens: int) -> AsyncIterator[Admission]:
        """Wait for a turn, hold it for the length of the body. A group above the limit goes alone."""
        async with self._turn:
            while (wait_s := self._wait_s(num_calls, num_tokens)) > 0:
                self._changed.clear()
                # Not `wait_for`: it loses a cancellation that comes together with the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if wait_s == math.inf else wait_s):
                        await self._changed.wait()
            self.num_under_way += num_calls
            self._spend(num_calls, num_tokens)
        try:
            yield Admission(self, num_calls, num_tokens)
        finally:
            self.num_under_way -= num_calls
            self._changed.set()

    def _wait_s(self, num_calls: int, num_tokens: int) -> float:
        """Seconds until it is worth looking again; infinite where only the end of another call helps."""
        if self.num_under_way and self.num_under_way + num_calls > self.limit:
            return math.inf
        now = loop_time()
        return max(
            self.rest_s(),
            self._calls.wait_s(num_calls, now) if self._calls else 0.0,
            self._tokens.wait_s(num_tokens, now) if self._tokens else 0.0,
        )

    def _spend(self, num_calls: int, num_tokens: int) -> None:
        now = loop_time()
        if self._calls:
            self._calls.take(num_calls, now)
        if self._tokens:
            self._tokens.take(num_tokens, now)

    def _learn(self, outcomes: Sequence[Outcome], num_cuts_before: int) -> None:
        failures = [outcome for outcome in outcomes if isinstance(outcome, NoVerdict)]
        if any(outcome.failure is Failure.THROTTLED for outcome in failures):
            self._window.throttled(num_cuts_before)
        else:
            self._window.succeeded(sum(o.usage.num_calls for o in outcomes if isinstance(o, Verdict)))
        for outcome in failures:
            self.rest(outcome.retry_after_s)
        self._changed.set()


def estimate_tokens(request: JudgeRequest, config: LLMJudgeConfig, max_answer_chars: int) -> list[int]:
    """Tokens that judging each prediction may take; what the endpoint counts replaces it afterwards."""
    fields = sum(min(len(text), config.max_field_chars) for text in (request.question, request.reference))
    return [
        PROMPT_TOKENS
        + config.max_reply_tokens
        + math.ceil((fields + min(len(prediction), max_answer_chars)) / CHARS_PER_TOKEN)
        for prediction in request.predictions
    ]
