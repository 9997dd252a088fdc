"""Calls to judges until every prediction has its outcome: tries, their deadline, the gate, and outages.

The handle makes one call to whichever replica is free and raises `JudgeError` where another try may help. All that
is counted about calls is counted here.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from actors.errors import JudgeError
from configs.judges import JudgeConfig
from judge.breaker import AVAILABILITY, PROBE, Breaker, State
from judge.clock import loop_time
from judge.counts import JudgeCounts
from judge.gate import Admission, Gate, estimate_tokens
from judge.tries import Tries, backoff_s
from judge.verdict import FINAL, Failure, GradeReply, JudgeRequest, NoVerdict, Outcome, Usage, Verdict, check_reply

MAX_OUTAGES = 8
"""Outages that calls of one group may end in: a question that takes its judge down whenever it is asked is given up."""
LONG_REST_S = 10.0
"""A rest that the endpoint asks for and that a person will notice."""


class JudgeHandle(Protocol):
    """One call to whichever judge is free."""

    async def grade(self, request: JudgeRequest) -> object:
        """The judge's reply, not yet checked.

        Raises:
            JudgeError: the call failed in a way that another try may mend.
        """
        ...


class Asker:
    """One per run: it sees every call, so it can tell an outage from a bad request and hold limits for all replicas."""

    def __init__(self, handle: JudgeHandle, config: JudgeConfig, *, warn: Callable[[str], None]) -> None:
        self._handle = handle
        self._config = config
        self._breaker = Breaker(self._probe, max_pause_s=config.max_pause_s, warn=warn)
        self._warn = warn
        # Rules answer faster than anybody could queue for them.
        self._gate = _make_gate(config) if config.has_llm else None
        self._told_until = -math.inf
        self._counts = JudgeCounts()

    @property
    def counts(self) -> JudgeCounts:
        """What all calls have taken until now."""
        return replace(self._counts, paused_s=self._breaker.paused_s)

    async def ask(self, request: JudgeRequest) -> dict[str, Outcome]:
        """A verdict for each prediction, or a reason of its own why there is none.

        Where an LLM takes fewer calls at a time than there are predictions, they are asked about part by part.

        Args:
            request: predictions that differ from each other.

        Raises:
            JudgeError: the judges were away for longer than `max_pause_s`.
        """
        outcomes: dict[str, Outcome] = {}
        while rest := tuple(p for p in request.predictions if p not in outcomes):
            outcomes |= await self._settle(replace(request, predictions=rest))
        return outcomes

    async def _settle(self, request: JudgeRequest) -> dict[str, Outcome]:
        """As `ask`, as many predictions as go into one call, the first ones. They share their tries.

        A group whose tries were used up for want of a judge blames itself only where others met the judges meanwhile,
        or where probes found them twice. Otherwise it is an outage, after which the group starts over, a few times.
        """
        breaker, unsettled = self._breaker, request.predictions
        outcomes: dict[str, Outcome] = {}
        tries = Tries(max_tries=self._config.max_tries, timeout_s=self._config.timeout_s)
        num_outages, num_met = breaker.num_outages, 0
        while unsettled:
            unsettled = self._first(replace(request, predictions=unsettled), outcomes)
            # Asked before any wait: a probe that ends a pause succeeds after this group's try, not beside it.
            is_own_fault = breaker.num_successes > tries.num_successes_before
            await breaker.closed()
            if breaker.num_outages > num_outages:
                num_outages = breaker.num_outages
                num_met += tries.num_calls > 0
                if num_met >= MAX_OUTAGES:
                    break
                tries.renew(is_second_chance=False)
            if tries.are_used_up:
                unsettled = tuple(p for p in unsettled if failure_of(outcomes[p]) in AVAILABILITY)
                if not unsettled or is_own_fault:
                    break
                breaker.trip()
                await breaker.closed()
                if breaker.num_outages == num_outages:
                    if tries.is_second_chance:
                        break
                    tries.renew(is_second_chance=True)
                continue
            tries.num_successes_before = breaker.num_successes
            await self._try(replace(request, predictions=unsettled), outcomes, tries)
            unsettled = tuple(p for p in unsettled if failure_of(outcomes[p]) not in (None, *FINAL))
        return outcomes

    def _first(self, request: JudgeRequest, outcomes: dict[str, Outcome]) -> tuple[str, ...]:
        """As many predictions as go into one call by now. The others have no outcome any more: they start anew."""
        num_predictions = self._num_at_once(request)
        for prediction in request.predictions[num_predictions:]:
            outcomes.pop(prediction, None)
        for prediction in request.predictions[:num_predictions]:
            outcomes.setdefault(prediction, NoVerdict(reason="no judge replied"))
        return request.predictions[:num_predictions]

    async def _try(self, request: JudgeRequest, outcomes: dict[str, Outcome], tries: Tries) -> None:
        """One call, after a pause if it is not the first one, when it is this group's turn: unless by then an outage
        has begun, the group's time is over, or it has become too large."""
        with tries.spending(loop_time):
            await asyncio.sleep(min(tries.left_s, backoff_s(tries.num_calls, random.random())))
        async with self._turn(request) as admission:
            is_too_large = len(request.predictions) > self._num_at_once(request)
            if self._breaker.state is not State.CLOSED or tries.is_late or is_too_large:
                if admission is not None:
                    admission.settle(Usage(), ())
                return
            self._counts += JudgeCounts(num_retries=int(not tries.is_first_call))
            with tries.spending(loop_time):
                graded, usage = await self._call(request, tries.left_s)
            tries.num_calls += 1
            outcomes.update(zip(request.predictions, graded, strict=True))
            if admission is not None and usage is not None:
                is_throttled = any(failure_of(outcome) is Failure.THROTTLED for outcome in graded)
                tries.num_too_many += is_throttled and admission.num_under_way > 1
                admission.settle(usage, graded)
                self._tell_rest()
        self._learn(graded)

    def _tell_rest(self) -> None:
        """Say once that no call goes out for a while because the endpoint asked for it."""
        rest_s = self._gate.rest_s() if self._gate else 0.0
        if rest_s >= LONG_REST_S and loop_time() >= self._told_until:
            self._told_until = loop_time() + rest_s
            self._warn(f"the judge's endpoint asks for {rest_s:.0f} s without calls (Retry-After): verdicts wait")

    def _num_at_once(self, request: JudgeRequest) -> int:
        """Predictions that go into one call, the first ones."""
        return self._gate.num_at_once(self._num_tokens(request)) if self._gate else len(request.predictions)

    def _num_tokens(self, request: JudgeRequest) -> list[int]:
        return estimate_tokens(request, self._config.llm, self._config.max_answer_chars)

    def _turn(self, request: JudgeRequest) -> contextlib.AbstractAsyncContextManager[Admission | None]:
        if self._gate is None:
            return contextlib.nullcontext()
        return self._gate.admitted(len(request.predictions), sum(self._num_tokens(request)))

    async def _call(self, request: JudgeRequest, timeout_s: float) -> tuple[tuple[Outcome, ...], Usage | None]:
        """One round trip, counted: outcomes in the order of the predictions, and what they took.

        Nobody knows what a call took that brought no reply of a judge: None.
        """
        started, num_predictions = loop_time(), len(request.predictions)
        self._counts += JudgeCounts(num_calls=1)
        failure = Failure.UNREACHABLE
        try:
            async with asyncio.timeout(timeout_s) as deadline:
                raw = await self._handle.grade(request)
            failure = Failure.UNUSABLE
            reply = check_reply(raw, num_predictions)
        except TimeoutError:
            if not deadline.expired():
                raise
            return (NoVerdict(reason=f"no verdict within {self._config.timeout_s:g} s"),) * num_predictions, None
        except JudgeError as error:
            return (NoVerdict(reason=str(error), failure=failure),) * num_predictions, None
        usage = sum((outcome.usage for outcome in reply.outcomes), Usage())
        self._count(reply, usage, round_trip_s=loop_time() - started)
        return reply.outcomes, usage

    def _count(self, reply: GradeReply, usage: Usage, round_trip_s: float) -> None:
        queue_s = max(0.0, round_trip_s - reply.service_s)
        num_throttled = sum(failure_of(outcome) is Failure.THROTTLED for outcome in reply.outcomes)
        self._counts += JudgeCounts(num_replies=1, queue_s=queue_s, num_throttled=num_throttled)
        self._counts += JudgeCounts.of_usage(usage, self._config.llm)

    def _learn(self, reply: tuple[Outcome, ...]) -> None:
        """Tell the breaker. In a chain, what rules decided says nothing about the LLM behind them."""
        is_llm_needed = self._config.has_llm
        if any(isinstance(o, Verdict) and (o.usage.num_calls > 0 or not is_llm_needed) for o in reply):
            self._breaker.succeeded()
        elif missing := [o for o in reply if isinstance(o, NoVerdict) and o.failure in AVAILABILITY]:
            self._breaker.failed(missing[-1])

    async def _probe(self) -> Outcome:
        """One settled question, past the gate, but not before the endpoint wants to hear of anybody."""
        if self._gate is not None:
            await asyncio.sleep(self._gate.rest_s())
        timeout_s = max(self._config.timeout_s, self._config.llm.try_timeout_s)
        (outcome,), _ = await self._call(PROBE, timeout_s)
        if self._gate is not None and isinstance(outcome, NoVerdict):
            self._gate.rest(outcome.retry_after_s)
        return outcome


def failure_of(outcome: Outcome) -> Failure | None:
    """Why there is no verdict; None where there is one."""
    return outcome.failure if isinstance(outcome, NoVerdict) else None


def _make_gate(config: JudgeConfig) -> Gate:
    llm = config.llm
    return Gate(
        max_concurrent=llm.max_concurrent,
        requests_per_minute=llm.requests_per_minute,
        tokens_per_minute=llm.tokens_per_minute,
        max_rest_s=config.max_pause_s,
    )
