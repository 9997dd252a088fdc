"""An LLM judge that Ray Serve runs inside the cluster: `ray.serve.llm` over vLLM, behind Serve's own HTTP proxies.

Serve runs a proxy on the loopback interface of every node with a replica, all on the same port. Judges are replicas
too, so `http://127.0.0.1:PORT/APP/v1` reaches the LLM from each of them, and nothing listens where another machine
could call. The model folder has to lie under the same path on every node. With `judge.cluster.min_replicas=0` the HTTP
side stays up without engines, holds the calls that come and has Serve start an engine for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import ray
from openai import APIError, APIStatusError, APITimeoutError
from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException

from actors.errors import JudgeError, root_cause
from configs.judges import JudgeConfig
from judge.deployment import LOOPBACK, accept_metrics_interval, delete_application, start_serve
from judge.llm.endpoint import connect
from judge.llm.served_model import application_options, model_id

HOLD_S = 30.0
"""How long a call waits for an engine before somebody looks whether one may still come."""
RETRY_S = 1.0


@contextlib.asynccontextmanager
async def served_llm(config: JudgeConfig, app_name: str) -> AsyncIterator[JudgeConfig]:
    """The config with which judges reach their LLM, up and answering; gone on exit. Needs a connection to Ray.

    Without `cluster` in the chain nothing happens. `app_name` names the Serve application, alone on the cluster.

    Raises:
        JudgeError: Serve cannot speak HTTP here, or no engine came up within `judge.cluster.start_timeout_s`.
    """
    if "cluster" not in config.chain:
        yield config
        return
    deadline_at = time.monotonic() + config.cluster.start_timeout_s
    try:
        served = await asyncio.to_thread(deploy_llm, config, app_name, deadline_at=deadline_at)
        await wake_llm(served, app_name, deadline_at=deadline_at)
        yield served
    finally:
        await asyncio.to_thread(delete_application, app_name)


def deploy_llm(config: JudgeConfig, app_name: str, *, deadline_at: float) -> JudgeConfig:
    """Have Serve start the application, and return the config with which judges will reach it. Blocks.

    Raises:
        JudgeError: Serve cannot speak HTTP here, or `deadline_at` (monotonic clock) has come.
    """
    address, name = _start_proxies(), model_id(Path(config.llm.model))
    # Building the application imports vLLM, which takes a gigabyte and sets the logging of its process up anew: that
    # happens in a process that ends with it.
    build = ray.remote(num_cpus=0, max_calls=1)(_run_application)
    built = build.remote(application_options(config, name), app_name)
    try:
        ray.get(built, timeout=max(0.0, deadline_at - time.monotonic()))
    except (RayServeException, RayError) as error:
        ray.cancel(built, force=True)
        raise JudgeError(f"the LLM judge {app_name!r} could not be deployed: {root_cause(error)}") from error
    llm = replace(config.llm, model=name, base_url=f"{address}/{app_name}/v1", azure_api_version="")
    return replace(config, llm=replace(llm, api_key_file="", api_key_env=""))


def _run_application(options: dict[str, Any], app_name: str) -> None:
    from ray.serve.llm import build_openai_app

    target = serve.RunTarget(target=build_openai_app(options), name=app_name, route_prefix=f"/{app_name}")
    serve.run_many([target], wait_for_applications_running=False)


def waker(config: JudgeConfig, app_name: str) -> Callable[[], Awaitable[None]] | None:
    """How to have an engine of `served_llm` up again where Serve may scale them to none; None where nobody has to."""
    if "cluster" not in config.chain or config.cluster.min_replicas:
        return None
    return lambda: wake_llm(config, app_name, deadline_at=time.monotonic() + config.cluster.start_timeout_s)


async def wake_llm(config: JudgeConfig, app_name: str, *, deadline_at: float) -> None:
    """Have an engine up: a call of one token, which Serve holds until one answers.

    Raises:
        JudgeError: the engine died on its way up, or was not up by `deadline_at` (monotonic clock).
    """
    llm, reason, hello = config.llm, "no try was made", cast(Any, [{"role": "user", "content": "Hi"}])
    async with connect(llm, "", is_own=True) as client:
        while (left_s := deadline_at - time.monotonic()) > 0:
            if failure := await asyncio.to_thread(failure_of, app_name):
                raise JudgeError(f"the engine of the LLM judge {llm.model!r} failed to start: {failure}")
            try:
                hold_s = min(HOLD_S, left_s)
                await client.chat.completions.create(model=llm.model, messages=hello, max_tokens=1, timeout=hold_s)
                return
            except APITimeoutError:  # asked again at once: an engine is started for calls that wait
                reason = "no reply"
            except APIError as error:  # a proxy that does not know the new route yet says 404
                if isinstance(error, APIStatusError) and error.status_code < 500 and error.status_code != 404:
                    raise JudgeError(f"the LLM judge {llm.model!r} rejected a plain chat: {error.message}") from error
                reason = root_cause(error.message)
                await asyncio.sleep(min(RETRY_S, left_s))
    raise JudgeError(f"the LLM judge {app_name!r} was not ready within judge.cluster.start_timeout_s: {reason}")


def _start_proxies() -> str:
    """Address of Serve's proxies, the same on every node; starts Serve where it is not up, on the loopback interface.

    Raises:
        JudgeError: Serve was started by somebody else, without proxies. How it listens is settled when it starts.
    """
    accept_metrics_interval()  # of the judges beside the LLM
    try:
        start_serve()
    except (RayServeException, RayError, RuntimeError, TimeoutError) as error:
        raise JudgeError(f"Serve's HTTP proxy failed to start: {root_cause(error)}") from error
    if not serve.status().proxies:
        why = "Ray Serve runs on this cluster without HTTP proxies, for others, so no LLM judge can be reached"
        raise JudgeError(f"{why}: wait until they are done, then run `serve shutdown`")
    return f"http://{LOOPBACK}:{_get_global_client().http_config.port}"  # its status does not tell the port


def failure_of(app_name: str) -> str | None:
    """Why an application will not come up; None while it still may."""
    application = serve.status().applications.get(app_name)
    if application is None:
        return "its application is gone"
    parts = [*application.deployments.values(), application]
    return next((root_cause(part.message) for part in parts if part.status in ("DEPLOY_FAILED", "UNHEALTHY")), None)
