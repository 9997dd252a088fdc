"""Verdicts for groups: from the store, from another group's call under way, or from the judges (`judge.asker`).

Pure asyncio behind Protocols. Limits are global for a run, whatever the number of replicas: there is one pool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from configs.judges import JudgeConfig
from judge.asker import Asker, JudgeHandle
from judge.clock import loop_time
from judge.counts import JudgeCounts
from judge.flights import Flights
from judge.llm.cache import JudgedAnswer, verdict_key
from judge.verdict import JudgeRequest, NoVerdict, Outcome, Usage, Verdict


class VerdictStore(Protocol):
    """Verdicts of LLMs that are known already, such as a `judge.llm.cache.VerdictCache`."""

    async def get(self, keys: Sequence[str]) -> dict[str, Verdict]: ...

    async def put(self, answers: Sequence[JudgedAnswer]) -> None: ...


def _silent(text: str) -> None:
    """Nobody to tell."""


class JudgePool:
    """Grades groups. What fails by itself is a `NoVerdict`, never a wrong answer; an outage is waited out.

    Args:
        store: verdicts that need no call; None keeps none.
        judge_version: of the LLM in the chain, as its verdicts carry it: part of their keys in the store.
        warn: tells a person why the run waits.
    """

    def __init__(
        self,
        handle: JudgeHandle,
        config: JudgeConfig,
        *,
        store: VerdictStore | None = None,
        judge_version: str = "",
        warn: Callable[[str], None] = _silent,
    ) -> None:
        self._has_llm = config.has_llm
        self._store = store if config.has_llm else None
        self._judge_version = judge_version
        self._asker = Asker(handle, config, warn=warn)
        self._flights: Flights[JudgeRequest] = Flights()
        self._counts = JudgeCounts()

    @property
    def counters(self) -> JudgeCounts:
        """What judging has taken until now."""
        return self._counts + self._asker.counts

    async def grade(self, request: JudgeRequest) -> tuple[Outcome, ...]:
        """One outcome per prediction. Equal ones are judged once, also those that another group asks about right now.

        The tries of a group share `timeout_s`; waits for a turn and for the end of an outage do not count.

        Raises:
            JudgeError: the judges were away for longer than `max_pause_s`, or the store cannot be used.
        """
        started = loop_time()
        outcomes = await self._known(request)
        if missing := tuple(p for p in dict.fromkeys(request.predictions) if p not in outcomes):
            ask = self._share if self._has_llm else self._asker.ask  # rules answer faster than anybody could look up
            outcomes |= await ask(replace(request, predictions=missing))
        graded = _in_order(request.predictions, outcomes)
        num_unjudged = sum(isinstance(outcome, NoVerdict) for outcome in graded)
        self._counts += JudgeCounts(num_groups=1, num_unjudged=num_unjudged, total_s=loop_time() - started)
        return graded

    async def grade_anew(self, request: JudgeRequest) -> tuple[Outcome, ...]:
        """As `grade`, by the judges as they are now: from no store and into none, and counted as no group."""
        outcomes = await self._asker.ask(replace(request, predictions=tuple(dict.fromkeys(request.predictions))))
        return _in_order(request.predictions, outcomes)

    async def _known(self, request: JudgeRequest) -> dict[str, Outcome]:
        """What needs no call, by prediction."""
        if self._store is None:
            return {}
        keys = {
            prediction: verdict_key(request.question, request.reference, prediction, self._judge_version)
            for prediction in dict.fromkeys(request.predictions)
        }
        found = await self._store.get(list(keys.values()))
        self._counts += JudgeCounts(num_cache_hits=len(found))
        return {prediction: found[key] for prediction, key in keys.items() if key in found}

    async def _share(self, request: JudgeRequest) -> dict[str, Outcome]:
        """As `Asker.ask`, without asking what another group is asking; LLMs' verdicts go into the store."""
        keys = [replace(request, predictions=(prediction,)) for prediction in request.predictions]
        asked: set[JudgeRequest] = set()

        async def ask(mine: Sequence[JudgeRequest]) -> dict[JudgeRequest, Outcome]:
            asked.update(mine)
            outcomes = await self._asker.ask(replace(request, predictions=tuple(key.predictions[0] for key in mine)))
            if self._store is not None:
                await self._store.put(_worth_keeping(request, outcomes))
            return {key: outcomes[key.predictions[0]] for key in mine}

        found = await self._flights.share(keys, ask)
        # What a call took stands with the group that made it.
        return {
            key.predictions[0]: outcome if key in asked else replace(outcome, usage=Usage())
            for key, outcome in found.items()
        }


def _in_order(predictions: Sequence[str], outcomes: dict[str, Outcome]) -> tuple[Outcome, ...]:
    """One outcome per prediction. What its call took stands with the first of equal ones, so that sums are right."""
    first: dict[str, int] = {}
    for index, prediction in enumerate(predictions):
        first.setdefault(prediction, index)
    return tuple(
        outcomes[prediction] if first[prediction] == index else replace(outcomes[prediction], usage=Usage())
        for index, prediction in enumerate(predictions)
    )


def _worth_keeping(request: JudgeRequest, outcomes: dict[str, Outcome]) -> list[JudgedAnswer]:
    """Verdicts that an LLM gave. Rules are cheaper than a look-up, and a failure is no verdict."""
    return [
        JudgedAnswer(question=request.question, reference=request.reference, prediction=prediction, verdict=outcome)
        for prediction, outcome in outcomes.items()
        if isinstance(outcome, Verdict) and outcome.usage.num_calls > 0
    ]
