"""The configured judge in this process, behind the limits, tries and cache of a run: for `judge check` and `replay`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

from configs.judges import JudgeConfig
from judge.chain import Closing, make_judge
from judge.llm.apikey import read_key
from judge.llm.cache import VerdictCache
from judge.llm.version import judge_version
from judge.pool import JudgePool
from judge.verdict import GradeReply, Judge, JudgeRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class InProcess:
    """A judge of this process as the handle of a pool."""

    judge: Judge

    async def grade(self, request: JudgeRequest) -> GradeReply:
        started = time.monotonic()
        outcomes = tuple(await self.judge.grade(request))
        return GradeReply(outcomes=outcomes, service_s=time.monotonic() - started)


@asynccontextmanager
async def pool_in_process(
    config: JudgeConfig,
    *,
    make: Callable[[JudgeConfig], Judge] = make_judge,
    has_cache: bool = False,
    warn: Callable[[str], None] = lambda text: None,
) -> AsyncIterator[JudgePool]:
    """A pool of one judge. Ray starts only where `judge.chain` names `cluster`. `has_cache`: it uses `judge.cache`.

    Raises:
        JudgeError: the key of the endpoint cannot be read, or the LLM in the cluster does not come up.
    """
    async with AsyncExitStack() as cleanup:
        if "cluster" in config.chain:
            from cluster.launch import llm_in_cluster  # imports Ray

            config = await cleanup.enter_async_context(llm_in_cluster(config))
        if config.has_llm:
            read_key(config.llm)  # a missing key ends the command, not each call
        store = None
        if has_cache and config.has_llm and config.cache:
            store = cleanup.enter_context(closing(VerdictCache(Path(config.cache).expanduser())))
        judge = make(config)
        if isinstance(judge, Closing):
            cleanup.push_async_callback(judge.aclose)
        version = judge_version(config) if config.has_llm else ""
        yield JudgePool(InProcess(judge=judge), config, store=store, judge_version=version, warn=warn)
