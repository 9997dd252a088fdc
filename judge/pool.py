"""The way of a verdict: what needs no LLM first, then the store, then another group's call under way, then a call.

What rules decide waits for no limit, no outage and no replica. Pure asyncio behind Protocols. Limits are global for a
run, whatever the number of replicas: there is one pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Protocol

from configs.judges import JudgeConfig
from judge.calls import JudgeHandle, LLMCalls
from judge.chain import Closing, local_judges
from judge.clock import loop_time
from judge.counts import JudgeCounts
from judge.llm.cache import JudgedAnswer, verdict_key
from judge.verdict import FINAL, Failure, Judge, JudgeRequest, NoVerdict, Outcome, Usage, Verdict, failure_of


class VerdictStore(Protocol):
    """Verdicts of LLMs that are known already, such as a `judge.llm.cache.VerdictCache`."""

    async def get(self, keys: Sequence[str]) -> dict[str, Verdict]: ...

    async def put(self, answer: JudgedAnswer) -> None: ...


class JudgePool:
    """Grades groups. What fails by itself is a `NoVerdict`, never a wrong answer; an outage is waited out.

    Args:
        handle: reaches the LLM of `judge.chain`; None where the chain has none.
        store: verdicts that need no call; None keeps none.
        judge_version: of the LLM in the chain, as its verdicts carry it: part of their keys in the store.
        local: decides first, in this process, without blocking its loop; None takes what the chain has before its LLM.
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
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        assert handle is not None or not config.has_llm, "an LLM judges, and nothing reaches it"
        self._local = local_judges(config) if local is None else local
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

        Raises:
            JudgeError: the judges were away for longer than `max_pause_s`, or the store cannot be used.
        """
        started = loop_time()
        distinct = tuple(dict.fromkeys(request.predictions))
        decided = await self._local.grade(replace(request, predictions=distinct))
        outcomes = dict(zip(distinct, decided, strict=True))
        if self._calls is not None:
            undecided = [p for p, outcome in outcomes.items() if failure_of(outcome) is Failure.UNDECIDED]
            known = await self._known(request, undecided)
            outcomes |= known | await _each(request, [p for p in undecided if p not in known], self._share)
        graded = _in_order(request.predictions, outcomes)
        num_unjudged = sum(isinstance(outcome, NoVerdict) for outcome in graded)
        self._counts += JudgeCounts(num_groups=1, num_unjudged=num_unjudged, total_s=loop_time() - started)
        return graded

    async def grade_by_llm(self, request: JudgeRequest) -> tuple[Outcome, ...]:
        """As `grade`, by the LLM as it is now: past rules and store, counted as no group. Limits hold as for others."""
        assert self._calls is not None, "judge.chain has no LLM"
        return _in_order(request.predictions, await _each(request, request.predictions, self._calls.ask))

    async def _known(self, request: JudgeRequest, predictions: Sequence[str]) -> dict[str, Outcome]:
        """What needs no call, by prediction."""
        if self._store is None or not predictions:
            return {}
        keys = {p: verdict_key(request.question, request.reference, p, self._judge_version) for p in predictions}
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
        if self._store is not None and isinstance(outcome, Verdict) and outcome.usage.num_calls:
            question, reference, (prediction,) = request.question, request.reference, request.predictions
            answer = JudgedAnswer(question=question, reference=reference, prediction=prediction, verdict=outcome)
            await self._store.put(answer)
        return outcome


async def _each(
    request: JudgeRequest, predictions: Sequence[str], ask: Callable[[JudgeRequest], Coroutine[Any, Any, Outcome]]
) -> dict[str, Outcome]:
    """Outcomes by prediction, each asked about once, all at the same time. The first error ends the others."""
    tasks = {p: asyncio.create_task(ask(replace(request, predictions=(p,)))) for p in dict.fromkeys(predictions)}
    try:
        return dict(zip(tasks, await asyncio.gather(*tasks.values()), strict=True))
    finally:
        for task in tasks.values():
            task.cancel()


def _in_order(predictions: Sequence[str], outcomes: dict[str, Outcome]) -> tuple[Outcome, ...]:
    """One outcome per prediction. What its call took stands with the first of equal ones, so that sums are right."""
    first = {prediction: index for index, prediction in reversed(list(enumerate(predictions)))}
    return tuple(
        outcomes[prediction] if first[prediction] == index else replace(outcomes[prediction], usage=Usage())
        for index, prediction in enumerate(predictions)
    )
