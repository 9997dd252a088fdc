"""Where the verdicts of a replay come from: the record, the cache, and the judge, in this order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from cluster.judging.check import InProcess
from cluster.judging.recorded import RecordedEpisode, RecordedGroup
from cluster.judging.replay_report import Asked
from configs.judges import JudgeConfig
from configs.schema import Config
from judge.chain import Closing, make_judge
from judge.llm.apikey import read_key
from judge.llm.cache import open_cache
from judge.pool import JudgePool
from judge.verdict import Judge, JudgeRequest, NoVerdict, Outcome, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayJudge:
    """Who scores again."""

    config: Config
    """Its judge, its rewards, and how many verdicts a group needs."""
    version: str
    """Of the judge, as `judge.version` names it."""
    is_of_run: bool
    """Whether the run's own settings name the same judge."""
    make: Callable[[JudgeConfig], Judge] = make_judge
    """Called once there is something to ask."""


def is_same_judge(groups: Sequence[RecordedGroup], *, version: str, is_of_run: bool) -> bool:
    """Whether a step was scored by this judge: its LLM verdicts say so; without any, the run's settings do.

    The settings alone could mislead: they are those of the last resume.
    """
    versions = {
        episode.outcome.judge_version
        for group in groups
        for episode in group.episodes
        if isinstance(episode.outcome, Verdict) and episode.outcome.judge_version
    }
    return version in versions if versions else is_of_run


def kept_outcome(episode: RecordedEpisode, version: str, *, is_same: bool, has_llm: bool) -> Outcome | None:
    """The recorded outcome where it stands; None where the judge has to be asked.

    Of the judge's own steps everything stands, also what had no verdict then: to ask again would be a change. Rules
    cost nothing and run again where they decide alone.
    """
    outcome = episode.outcome
    if episode.answer is None:
        return outcome
    if isinstance(outcome, NoVerdict):
        return outcome if is_same else None
    if outcome.judge_version:
        return outcome if outcome.judge_version == version else None
    return outcome if is_same and has_llm else None


class Asking:
    """Cache and judge, each opened when first needed. Mutable: it counts."""

    def __init__(self, judge: ReplayJudge, warn: Callable[[str], None]) -> None:
        self._judge = judge
        self._warn = warn
        self._pool: JudgePool | None = None
        self._num_from_record = 0
        self._cleanup = AsyncExitStack()
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Asking:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._cleanup.aclose()

    @property
    def asked(self) -> Asked:
        if self._pool is None:
            return Asked(num_from_record=self._num_from_record)
        counts = self._pool.counters
        return Asked(
            num_from_record=self._num_from_record,
            num_cache_hits=counts.num_cache_hits,
            num_llm_calls=counts.num_llm_calls,
            cost_usd=counts.cost_usd,
        )

    async def fill(self, group: RecordedGroup, kept: Sequence[Outcome | None]) -> tuple[Outcome, ...]:
        """The outcomes of a group: those that are kept, and the judge's in place of each None."""
        open_answers = tuple(
            episode.answer
            for episode, outcome in zip(group.episodes, kept, strict=True)
            if outcome is None and episode.answer is not None
        )
        self._num_from_record += sum(
            outcome is not None and episode.answer is not None
            for episode, outcome in zip(group.episodes, kept, strict=True)
        )
        graded: Iterator[Outcome] = iter(())
        if open_answers:
            request = JudgeRequest(question=group.question, reference=group.reference, predictions=open_answers)
            graded = iter(await (await self._opened()).grade(request))
        return tuple(next(graded) if outcome is None else outcome for outcome in kept)

    async def _opened(self) -> JudgePool:
        async with self._opening:
            if self._pool is None:
                self._pool = await self._open(self._judge.config.judge)
            return self._pool

    async def _open(self, config: JudgeConfig) -> JudgePool:
        if "cluster" in config.chain:
            from cluster.launch import llm_in_cluster  # imports Ray

            config = await self._cleanup.enter_async_context(llm_in_cluster(config))
        if config.has_llm:
            read_key(config.llm)  # a missing key ends the command, not each call
        cache = open_cache(config, self._warn)
        if cache is not None:
            self._cleanup.callback(cache.close)
        judge = self._judge.make(config)
        if isinstance(judge, Closing):
            self._cleanup.push_async_callback(judge.aclose)
        version = self._judge.version
        return JudgePool(InProcess(judge), config, store=cache, judge_version=version, warn=self._warn)
