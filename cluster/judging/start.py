"""Starts the judges of a run or of a command, and ends them with it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator

import ray

from cluster.display import Display
from cluster.preflight.checks import Check, check_judge
from cluster.runtime.connect import check_address, connect
from cluster.runtime.logs import RunLogs
from configs.judges import JudgeConfig
from configs.paths import resolve_judge_paths
from configs.require import require
from configs.schema import Config
from judge.deployment import delete_application, deploy_judges, reap_applications
from judge.llm.cache import open_cache
from judge.llm.client import preflight_judge
from judge.llm.served_model import num_gpus_wanted
from judge.llm.server import served_llm, waker
from judge.llm.version import judge_version
from judge.pool import JudgePool


async def start_judges(config: Config, name: str, display: Display, cleanup: contextlib.AsyncExitStack) -> JudgePool:
    if not config.judge.has_llm:  # rules judge in this process
        return JudgePool(None, config.judge)
    store = await asyncio.to_thread(open_cache, config.judge, display.warn)
    if store is not None:
        cleanup.callback(store.close)
    if left := await asyncio.to_thread(reap_applications, [name, f"{name}-llm"]):
        display.say(f"ended what a driver of this run left on the cluster: {', '.join(left)}")
    judge = await cleanup.enter_async_context(served_llm(config.judge, f"{name}-llm"))
    wake = waker(judge, f"{name}-llm")
    cleanup.callback(delete_application, name)
    handle = await asyncio.to_thread(deploy_judges, judge, name)
    cleanup.callback(handle.close)
    return JudgePool(handle, judge, store=store, judge_version=judge_version(judge), wake=wake, warn=display.warn)


@contextlib.asynccontextmanager
async def llm_in_cluster(config: JudgeConfig) -> AsyncIterator[JudgeConfig]:
    """Start Ray and the LLM of `judge.cluster`, for a command that judges in its own process; yields its config."""
    config = resolve_judge_paths(config)
    check_judge(config, more=[check_address])
    connect()
    try:
        held, wanted = ray.cluster_resources().get("GPU", 0.0), num_gpus_wanted(config)
        remedy = f"the LLM judge needs {wanted:g} GPUs, the cluster has {held:g}"
        require(wanted <= held, "judge.cluster.num_gpus", config.cluster.num_gpus, remedy)
        with RunLogs.of_this_job(None).explain_failures():
            async with served_llm(config, unique_name("llm")) as judge:
                yield judge
    finally:
        ray.shutdown()


def unique_name(name: str) -> str:
    """Several runs may share a cluster."""
    return f"{name}-{secrets.token_hex(3)}"


def judge_checks(config: JudgeConfig, display: Display) -> list[Check]:
    """The check of the judge, by one test call; `check_run` itself checks prompt and model folder."""
    return [lambda: asyncio.run(preflight_judge(config, warn=display.warn))]
