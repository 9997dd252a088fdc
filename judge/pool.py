"""The way of a verdict: what needs no LLM first, then the store, then another group's call under way, then a call.

What rules decide waits for no limit, no outage and no replica. Pure asyncio behind Protocols. Limits are global for a
run, whatever the number of replicas: there is one pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from configs.judges import JudgeConfig
from judge.calls import JudgeHandle, LLMCalls
from judge.chain import Closing, local_judges
from judge.clock import loop_time
from judge.counts import JudgeCounts
from judge.llm.cache import JudgedAnswer, verdict_key
from judge.verdict import (
    FINAL,
    Failure,
    Judge,
    JudgeRequest,
    NoVerdict,
    Outcome,
    Usage,
    Verdict,
    check_outcomes,
    failure_of,
)


class VerdictStore(Protocol):
    """Verdicts of LLMs that are known already, such as a `judge.llm.cache.VerdictCache`."""

    async def get(self, keys: Sequence[str]) -> dict[str, Verdict]: ...

    async def put(self, answers: Sequence[JudgedAnswer]) -> None: ...


def _silent(text: str) -> None:
    """Nobody to tell."""


class JudgePool:
    """Grades groups. What fails by itself is a `NoVerdict`, never a wrong answer; an outage is waited out.

    Args:
        handle: reaches the LLM of `judge.chain`; None where the chain has none.
        store: verdicts that need no call; None keeps none.
        judge_version: of the LLM in the chain, as its verdicts carry it: part of their keys in the store.
        local: decides first, in this process, and must not block it; None takes what the chain has without its LLM.
        wake: see `judge.calls.LLMCalls`.
        warn: tells a person why the run waits.
    """

    def __init__(
        self,
        handle: JudgeHandle | None,
        config: JudgeConfig,
        *,
        store: VerdictStore | None = None,
        judge_version: str = "",
        local: Judge | None = None,
        wake: Callable[[], Awaitable[None]] | None = None,
        warn: Callable[[str], None] = _silent,
    ) -> None:
        self._local = local_judges(config) if local is None else local
        assert handle is not None or not config.has_llm, "an LLM judges, and nothing reaches it"
        self._calls = LLMCalls(handle, config, wake=wake, warn=warn) if handle and config.has_llm else None
        self._store = store
        self._judge_version = judge_version
        self._under_way: dict[JudgeRequest, asyncio.Future[Outcome | None]] = {}
        self._counts = JudgeCounts()

    @property
    def counters(self) -> JudgeCounts:
        """What judging has taken until now."""
        return self._counts + self._calls.counts if self._calls else self._counts

    async def aclose(self) -> None:
        """Let go of what the local judges hold."""
        if isinstance(self._local, Closing):
            await self._local.aclose()

    async def grade(self, request: JudgeRequest) -> tuple[Outcome, ...]:
        """One outcome per prediction. Equal ones are judged once, also those that another group asks about right now.

        The tries of an answer share `timeout_s`; waits for a turn and for the end of an outage do not count.

        Raises:
            JudgeError: the judges were away for longer than `max_pause_s`, or the store cannot be used.
        """
        started = loop_time()
        singles = _one_by_one(request)
        distinct = tuple(singles)
        decided = check_outcomes(await self._local.grade(replace(request, predictions=distinct)), len(distinct))
        outcomes = dict(zip(distinct, decided, strict=True))
        if self._calls is not None:
            open_ = {p: singles[p] for p, outcome in outcomes.items() if failure_of(outcome) is Failure.UNDECIDED}
            known = await self._known(open_)
            missing = [p for p in open_ if p not in known]
            asked = await _together(self._share(open_[p]) for p in missing)
            outcomes |= known | dict(zip(missing, asked, strict=True))
        graded = _in_order(request.predictions, outcomes)
        num_unjudged = sum(isinstance(outcome, NoVerdict) for outcome in graded)
        self._counts += JudgeCounts(num_groups=1, num_unjudged=num_unjudged, total_s=loop_time() - started)
        return graded

    async def grade_by_llm(self, request: JudgeRequest) -> tuple[Outcome, ...]:
        """As `grade`, by the LLM as it is now: past rules and store, counted as no group. Limits hold as for others."""
        assert self._calls is not None, "judge.chain has no LLM"
        singles = _one_by_one(request)
        asked = await _together(self._calls.ask(single) for single in singles.values())
        return _in_order(request.predictions, dict(zip(singles, asked, strict=True)))

    async def _known(self, requests: dict[str, JudgeRequest]) -> dict[str, Outcome]:
        """What needs no call, by prediction."""
        if self._store is None or not requests:
            return {}
        keys = {
            prediction: verdict_key(request.question, request.reference, prediction, self._judge_version)
            for prediction, request in requests.items()
        }
        found = await self._store.get(list(keys.values()))
        known: dict[str, Outcome] = {prediction: found[key] for prediction, key in keys.items() if key in found}
        self._counts += JudgeCounts(num_cache_hits=len(known))
        return known

    async def _share(self, request: JudgeRequest) -> Outcome:
        """Ask, unless somebody is asking already: whoever does waits for that outcome.

        What another try cannot change is shared: verdicts, and failures of the question itself. Any other failure, or
        an asker that left, is nobody else's outcome. What a call took stands with who made it.
        """
        while under_way := self._under_way.get(request):
            outcome = await asyncio.shield(under_way)
            if outcome is not None and failure_of(outcome) in (None, *FINAL):
                return replace(outcome, usage=Usage())
        mine = self._under_way[request] = asyncio.get_running_loop().create_future()
        outcome = None
        try:
            outcome = await self._ask(request)
            return outcome
        finally:
            del self._under_way[request]
            mine.set_result(outcome)

    async def _ask(self, request: JudgeRequest) -> Outcome:
        """Call, and keep what an LLM decided. A failure is no verdict."""
        assert self._calls is not None
        outcome = await self._calls.ask(request)
        if self._store is not None and isinstance(outcome, Verdict) and outcome.usage.num_calls > 0:
            (prediction,) = request.predictions
            await self._store.put(
                [
                    JudgedAnswer(
                        question=request.question, reference=request.reference, prediction=prediction, verdict=outcome
                    )
                ]
            )
        return outcome


def _one_by_one(request: JudgeRequest) -> dict[str, JudgeRequest]:
    """The predictions that differ, each with the request for its own call."""
    return {prediction: replace(request, predictions=(prediction,)) for prediction in request.predictions}


async def _together(calls: Iterable[Coroutine[Any, Any, Outcome]]) -> list[Outcome]:
    """All outcomes, in their order. The first error ends the others."""
    tasks = [asyncio.create_task(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _in_order(predictions: Sequence[str], outcomes: dict[str, Outcome]) -> tuple[Outcome, ...]:
    """One outcome per prediction. What its call took stands with the first of equal ones, so that sums are right."""
    told: set[str] = set()
    graded = []
    for prediction in predictions:
        outcome = outcomes[prediction]
        graded.append(replace(outcome, usage=Usage()) if prediction in told else outcome)
        told.add(prediction)
    return tuple(graded)
