"""An LLM judge that Ray Serve runs inside the cluster: `ray.serve.llm` over vLLM, behind Serve's own HTTP proxies.

Serve runs a proxy on the loopback interface of every node with a replica, all on the same port. Judges are replicas
too, so `http://127.0.0.1:PORT/APP/v1` reaches the LLM from each of them, and nothing listens where another machine
could call. The port has to be free on every node (`judge.cluster.port` chooses it), and the model folder has to lie
under the same path on each. With `judge.cluster.min_replicas=0` the HTTP side stays up without engines, holds the calls
that come and has Serve start an engine for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import ray
from openai import APIError, APIStatusError
from ray import serve
from ray.exceptions import GetTimeoutError, RayError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, DeploymentStatus, ServeStatus

from actors.errors import JudgeError, root_cause
from configs.judges import JudgeConfig, LLMJudgeConfig
from judge.deployment import LOOPBACK, accept_metrics_interval, delete_application, start_serve
from judge.llm.endpoint import connect
from judge.llm.served_model import (
    ENGINE_CLASS,
    check_model_folder,
    engine_options,
    ingress_options,
    model_id,
    num_gpus_wanted,
    served_config,
)

ANY_ADDRESS = ("0.0.0.0", "::", "")
POLL_S = 0.5
RETRY_S = 1.0
SERVE_LOGGER = "ray.serve"


@contextlib.asynccontextmanager
async def served_llm(config: JudgeConfig, app_name: str) -> AsyncIterator[JudgeConfig]:
    """The config with which judges reach their LLM, up and answering; gone on exit.

    Without `cluster` in the chain nothing happens. Needs a connection to Ray.

    Args:
        app_name: of the Serve application, unique on the cluster.

    Raises:
        JudgeError: the folder is no model, GPUs are missing, Serve cannot speak HTTP here, or no engine came up within
            `judge.cluster.start_timeout_s`.
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
    """Start the application, without its engines, and return the config with which judges reach it. Blocks.

    Raises:
        JudgeError: the folder is no model, GPUs are missing, Serve cannot speak HTTP here, or nothing was up by
            `deadline_at` (monotonic clock).
    """
    check_model_folder(folder := Path(config.llm.model))
    held, wanted = ray.cluster_resources().get("GPU", 0.0), num_gpus_wanted(config)
    if wanted > held:
        raise JudgeError(
            f"judge.cluster.num_gpus={config.cluster.num_gpus:g} is invalid: the LLM judge needs {wanted:g} GPUs, the "
            f"cluster has {held:g}"
        )
    logging.getLogger(SERVE_LOGGER).setLevel(logging.ERROR)
    address, name = _start_proxies(config.cluster.port), model_id(folder)
    # Building the application imports vLLM, which takes a gigabyte and sets the logging of its process up anew: that
    # happens in a process that ends with it.
    build = ray.remote(num_cpus=0, max_calls=1)(_run_application)
    built = build.remote(engine_options(config, name), ingress_options(config), app_name)
    try:
        ray.get(built, timeout=max(0.0, deadline_at - time.monotonic()))
    except GetTimeoutError as error:
        ray.cancel(built, force=True)
        raise JudgeError(f"{_late(app_name)}: it was still being deployed") from error
    except (RayServeException, RayError) as error:
        raise JudgeError(f"the LLM judge {app_name!r} could not be deployed: {root_cause(error)}") from error
    while not _is_ingress_up(app_name):
        if time.monotonic() > deadline_at:
            raise JudgeError(f"{_late(app_name)}: nothing answers HTTP for it")
        time.sleep(POLL_S)
    return served_config(config, base_url=f"{address}/{app_name}/v1", model=name)


def _run_application(engine: dict[str, Any], ingress: dict[str, Any], app_name: str) -> None:
    from ray.serve.llm import LLMConfig, build_openai_app

    application = build_openai_app({"llm_configs": [LLMConfig(**engine)], "ingress_deployment_config": ingress})
    target = serve.RunTarget(target=application, name=app_name, route_prefix=f"/{app_name}")
    serve.run_many([target], wait_for_applications_running=False)


def waker(config: JudgeConfig, app_name: str) -> Callable[[], Awaitable[None]] | None:
    """How to have an engine of `served_llm` up again where Serve may scale them to none; None where nobody has to."""
    if "cluster" not in config.chain or config.cluster.min_replicas:
        return None
    return lambda: wake_llm(config, app_name, deadline_at=time.monotonic() + config.cluster.start_timeout_s)


async def wake_llm(config: JudgeConfig, app_name: str, *, deadline_at: float) -> None:
    """Have an engine up: one call of one token, held by Serve until one answers.

    Raises:
        JudgeError: the engine died on its way up, or was not up by `deadline_at` (monotonic clock).
    """
    call = asyncio.create_task(_first_call(config.llm, app_name, deadline_at))
    try:
        while not call.done():
            if failure := await asyncio.to_thread(_failure, app_name):
                raise JudgeError(f"the engine of the LLM judge {config.llm.model!r} does not come up: {failure}")
            await asyncio.wait([call], timeout=POLL_S)
        call.result()
    finally:
        call.cancel()


async def _first_call(llm: LLMJudgeConfig, app_name: str, deadline_at: float) -> None:
    reason, chat = "no try was made", [{"role": "user", "content": "Hi"}]
    async with connect(llm, "", is_own=True) as client:
        while (left_s := deadline_at - time.monotonic()) > 0:
            try:
                await client.chat.completions.create(
                    model=llm.model, messages=cast(Any, chat), max_tokens=1, timeout=left_s
                )
                return
            except APIStatusError as error:
                if error.status_code < 500 and error.status_code != 404:
                    raise JudgeError(f"the LLM judge {llm.model!r} refused a plain chat: {error.message}") from error
                reason = f"status {error.status_code}"  # a proxy that does not know the new route yet says 404
            except APIError as error:
                reason = type(error).__name__
            await asyncio.sleep(min(RETRY_S, max(0.0, left_s)))
    raise JudgeError(f"{_late(app_name)}: {reason}")


def _start_proxies(port: int) -> str:
    """Address of Serve's proxies, the same on every node; starts Serve where it is not up, on the loopback interface.

    Raises:
        JudgeError: Serve was started by somebody else, without proxies. How it listens is settled when it starts.
    """
    try:
        start_serve(port)
    except (RayServeException, RayError, RuntimeError, TimeoutError) as error:
        raise JudgeError(f"Serve's HTTP proxy did not come up: {root_cause(error)}") from error
    if not _serve_status().proxies:
        raise JudgeError(
            "Ray Serve runs on this cluster without HTTP proxies, for other applications, so no LLM judge can be "
            "reached: wait until they are done, then run `serve shutdown`"
        )
    http = _get_global_client().http_config  # its status does not tell the port
    host = LOOPBACK if http.host in ANY_ADDRESS else http.host
    return f"http://{host}:{http.port}{http.root_path}"


def _serve_status() -> ServeStatus:
    accept_metrics_interval()  # of the judges beside the LLM
    return serve.status()


def _failure(app_name: str) -> str | None:
    """Why an application will not come up; None while it still may."""
    application = _serve_status().applications.get(app_name)
    if application is None:
        return "its application is gone"
    for deployment in application.deployments.values():
        if deployment.status in (DeploymentStatus.DEPLOY_FAILED, DeploymentStatus.UNHEALTHY):
            return root_cause(deployment.message)
    failed = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)
    return root_cause(application.message) if application.status in failed else None


def _is_ingress_up(app_name: str) -> bool:
    """Whether the application takes calls. Engines do not count: the first call starts one."""
    application = _serve_status().applications.get(app_name)
    if application is None:
        return False
    if failure := _failure(app_name):
        raise JudgeError(f"the LLM judge {app_name!r} could not be deployed: {failure}")
    ingress = [status for name, status in application.deployments.items() if not name.startswith(f"{ENGINE_CLASS}:")]
    return bool(ingress) and all(deployment.status is DeploymentStatus.HEALTHY for deployment in ingress)


def _late(app_name: str) -> str:
    return f"the LLM judge {app_name!r} was not up within judge.cluster.start_timeout_s"
