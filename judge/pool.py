"""The way of a verdict: what needs no LLM first, then the store, then another group's call under way, then a call.

What rules decide waits for no limit, no outage and no replica. Pure asyncio; limits are global for a run, whatever the
number of replicas: there is one pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from configs.judges import JudgeConfig
from judge.calls import JudgeHandle, LLMCalls
from judge.limits import loop_time
from judge.llm.cache import JudgedAnswer, VerdictCache, verdict_key
from judge.llm.prompt import prompt_of
from judge.llm.version import version_for
from judge.rules.judge import RulesJudge
from judge.trust.precheck import Precheck
from judge.verdict import FINAL, Failure, Judge, JudgeCounts, JudgeRequest, NoVerdict, Outcome, Usage, Verdict

_OPEN: Outcome = NoVerdict(reason="no judge was asked", failure=Failure.UNDECIDED)


def local_judges(config: JudgeConfig) -> list[Judge]:
    """Those that need no LLM, for the process that asks: what is always checked, and the rules where they are named."""
    rules = [RulesJudge.from_config(config)] if "rules" in config.chain else []
    return [Precheck(max_answer_chars=config.max_answer_chars), *rules]


class JudgePool:
    """Grades groups. What fails by itself is a `NoVerdict`, never a wrong answer; an outage is waited out.

    Args:
        handle: reaches the LLM of `judge.chain`; None where the chain has none.
        store: verdicts that need no call; None keeps none.
        judge_version: of the LLM in the chain, as its verdicts carry it: part of their keys in the store.
        local: decide in this process, without blocking its loop, each on what the ones before left open; None takes
            what the chain has before its LLM.
        wake: see `judge.calls.LLMCalls`.
        warn: tells a person why the run waits.
    """

    def __init__(
        self,
        handle: JudgeHandle | None,
        config: JudgeConfig,
        *,
        store: VerdictCache | None = None,
        judge_version: str = "",
        local: Sequence[Judge] | None = None,
        wake: Callable[[], Awaitable[None]] | None = None,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        assert handle is not None or not config.has_llm, "an LLM judges, and nothing reaches it"
        self._config = config
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

    async def grade(self, request: JudgeRequest) -> tuple[Outcome, ...]:
        """One outcome per prediction. Equal ones are judged once, also those that another group asks about right now.

        Rules and pre-checks take part in verdicts alone; any other task is the LLM's.

        Raises:
            JudgeError: the judges were away for longer than `max_pause_s`.
        """
        started = loop_time()
        outcomes: dict[str, Outcome] = dict.fromkeys(request.predictions, _OPEN)
        for judge in self._local if request.task == "verdict" else ():
            left = _undecided(outcomes)
            outcomes |= zip(left, await judge.grade(replace(request, predictions=left)), strict=True)
        if self._calls is not None:
            outcomes |= await self._known(request, _undecided(outcomes))
            outcomes |= await self._ask(request, _undecided(outcomes))
        graded = _in_order(request.predictions, outcomes)
        num_unjudged = sum(isinstance(outcome, NoVerdict) for outcome in graded)
        self._counts += JudgeCounts(num_groups=1, num_unjudged=num_unjudged, total_s=loop_time() - started)
        return graded

    async def grade_by_llm(self, request: JudgeRequest) -> Outcome:
        """On one prediction, by the LLM as it is now: past rules and store, counted as no group. Limits hold."""
        assert self._calls is not None, "judge.chain has no LLM"
        return await self._calls.ask(request)

    async def _known(self, request: JudgeRequest, predictions: Sequence[str]) -> dict[str, Outcome]:
        """What needs no call, by prediction."""
        if self._store is None or not predictions:
            return {}
        config = self._config
        version = version_for(self._judge_version, request, config, lambda task: prompt_of(config, task))
        keys = {p: verdict_key(request.question, request.reference, p, version) for p in predictions}
        found = await self._store.get(list(keys.values()))
        known: dict[str, Outcome] = {prediction: found[key] for prediction, key in keys.items() if key in found}
        self._counts += JudgeCounts(num_cache_hits=len(known))
        return known

    async def _ask(self, request: JudgeRequest, predictions: Sequence[str]) -> dict[str, Outcome]:
        """Outcomes by prediction, all asked about at the same time. The first error ends the others."""
        tasks = {p: asyncio.create_task(self._share(replace(request, predictions=(p,)))) for p in predictions}
        try:
            return dict(zip(tasks, await asyncio.gather(*tasks.values()), strict=True))
        finally:
            for task in tasks.values():
                task.cancel()

    async def _share(self, request: JudgeRequest) -> Outcome:
        """Ask and keep the verdict, unless somebody is asking already: whoever does waits for that outcome.

        What another try cannot change is shared: verdicts, and failures of the question itself. Any other failure, or
        an asker that left, is nobody else's outcome. What a call took stands with who made it.
        """
        assert self._calls is not None
        while under_way := self._under_way.get(request):
            outcome = await asyncio.shield(under_way)
            if outcome is not None and outcome.failure in (None, *FINAL):
                return replace(outcome, usage=Usage())
        mine = self._under_way[request] = asyncio.get_running_loop().create_future()
        outcome = None
        try:
            outcome = await self._calls.ask(request)
            if self._store is not None and isinstance(outcome, Verdict) and outcome.usage.num_calls:
                texts = {"question": request.question, "reference": request.reference}
                await self._store.put(JudgedAnswer(**texts, prediction=request.predictions[0], verdict=outcome))
            return outcome
        finally:
            del self._under_way[request]
            mine.set_result(outcome)


def _undecided(outcomes: dict[str, Outcome]) -> tuple[str, ...]:
    return tuple(p for p, outcome in outcomes.items() if outcome.failure is Failure.UNDECIDED)


def _in_order(predictions: Sequence[str], outcomes: dict[str, Outcome]) -> tuple[Outcome, ...]:
    """One outcome per prediction. What its call took stands with the first of equal ones, so that sums are right."""
    left = dict(outcomes)
    return tuple(left.pop(p) if p in left else replace(outcomes[p], usage=Usage()) for p in predictions)
