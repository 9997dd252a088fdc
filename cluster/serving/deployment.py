"""A policy behind Ray Serve: replicas with an engine each, autoscaled by load, behind Serve's HTTP proxy."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig, HTTPOptions, ProxyLocation
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus

from actors.errors import RunError, root_cause
from cluster.runtime.placement import actor_options, place
from cluster.serving.app import ServeSettings, build_app
from cluster.serving.metrics import FOLDER_VARIABLE
from cluster.serving.policy import ServedPolicy, start_policy
from cluster.serving.requests import Question
from configs.ranges import Range
from configs.schema import Config
from judge.deployment import accept_metrics_interval, delete_application
from judge.llm.server import failure_of

Start = Callable[[Config], Awaitable[ServedPolicy]]
POLL_S = 0.2
ONE_LOOP = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}
"""A replica's environment: its application shares the event loop of Ray's side. It never blocks once it serves, and a
thread of its own would cost each request several ways into it and back."""
DRAIN_S = 20.0
"""A replica that is taken away ends its requests first, within this time."""


class PolicyReplica:
    """One engine and its HTTP side."""

    def __init__(self, config: Config, settings: ServeSettings, start: Start) -> None:
        Path(os.environ[FOLDER_VARIABLE]).mkdir(parents=True, exist_ok=True)
        self._app = build_app(lambda: _started(config, start), settings)

    def __serve_build_asgi_app__(self) -> Any:
        return self._app

    async def check_health(self) -> None:
        """Called by Serve, which replaces a replica that raises or does not answer."""
        await self._app.state.policy.check_health()


async def _started(config: Config, start: Start) -> ServedPolicy:
    """A policy that has played once: an engine's first request takes seconds more than the others."""
    policy, blank = await start(config), io.BytesIO()
    Image.new("RGB", (256, 256)).save(blank, "PNG")
    await policy.answer(Question(text="?", max_tokens=1), await policy.cut(blank.getvalue()))
    return policy


@contextlib.contextmanager
def served(
    config: Config,
    settings: ServeSettings,
    *,
    replicas: Range,
    host: str,
    port: int,
    start: Start = start_policy,
    stop: threading.Event | None = None,
) -> Iterator[str]:
    """The endpoint's address while it is up. Blocks while the first engine starts.

    Needs a connection to Ray that was made with `gateway.ENVIRONMENT`.

    Args:
        start: starts the policy of a replica; a function that can be pickled.
        stop: set by another thread, it ends the wait for the first engine.

    Raises:
        RunError: the port is taken, or no replica came up within `rollout.start_timeout_s` or until `stop` was set.
    """
    app_name = f"policy-{port}"
    deployment = serve.deployment(**_options(config, settings, replicas, app_name))(serve.ingress()(PolicyReplica))
    target = serve.RunTarget(target=deployment.bind(config, settings, start), name=app_name, route_prefix="/")
    deadline_at = time.monotonic() + config.rollout.start_timeout_s
    with contextlib.ExitStack() as cleanup:
        try:
            _listen(host, port)
            _refuse_second(app_name, host, port)
            cleanup.callback(delete_application, app_name, within_s=DRAIN_S + 5.0)
            serve.run_many([target], wait_for_applications_running=False)
            _wait_until_running(app_name, deadline_at, stop or threading.Event())
        except (RayServeException, RayError, RuntimeError, ValueError) as error:
            raise RunError(f"the policy could not be served: {root_cause(error)}") from error
        yield f"http://{host}:{port}"


def _options(config: Config, settings: ServeSettings, replicas: Range, app_name: str) -> dict[str, Any]:
    """Options of the deployment. A replica takes all that its own limits let in, so that it can refuse the rest."""
    accept_metrics_interval()
    threads = {} if config.rollout.num_gpus else {"OMP_NUM_THREADS": str(config.rollout.num_threads)}
    folder = Path(tempfile.gettempdir()) / f"{app_name}-{os.getpid()}-metrics"
    actor = actor_options(place(config).worker, {**threads, **ONE_LOOP, FOLDER_VARIABLE: str(folder)})
    del actor["scheduling_strategy"]  # Serve has its own
    return {
        "name": "policy",
        "ray_actor_options": actor,
        "max_ongoing_requests": 2 * (settings.max_running + settings.max_waiting),
        "autoscaling_config": AutoscalingConfig(
            min_replicas=replicas.minimum,
            max_replicas=replicas.maximum,
            target_ongoing_requests=max(1, settings.max_running // 2),
            upscale_delay_s=10.0,
            downscale_delay_s=120.0,
        ),
        "graceful_shutdown_timeout_s": DRAIN_S,
        "health_check_timeout_s": config.rollout.progress_timeout_s,
        "max_constructor_retry_count": 1,  # what an engine fails at once, such as memory, it fails at again
    }


def _listen(host: str, port: int) -> None:
    """Have Serve's proxy listen there. How it listens is settled for a cluster when it starts."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with contextlib.suppress(RayServeException):  # raised where Serve is not up
        options = _get_global_client().http_config
        if (options.host, options.port) != (host, port):
            there = f"{options.host}:{options.port}"
            raise RunError(f"Ray Serve listens on {there} for this whole cluster: give that as --host and --port")
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise RunError(f"--port {port} on {host} cannot be used: {error.strerror}; choose another") from error
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options=HTTPOptions(host=host, port=port),
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )


def _refuse_second(app_name: str, host: str, port: int) -> None:
    """Serve would put a second application of the name in place of the first."""
    if app_name in serve.status().applications:
        raise RunError(
            f"an endpoint is up at {host}:{port} of this cluster already: end its command, or remove what a killed one "
            "has left with `serve shutdown`, which ends all that Ray Serve runs there"
        )


def _wait_until_running(app_name: str, deadline_at: float, stop: threading.Event) -> None:
    while True:
        if failure := failure_of(app_name):
            raise RunError(f"the policy's engine failed to start: {failure}")
        if serve.status().applications[app_name].status is ApplicationStatus.RUNNING:
            return
        if time.monotonic() > deadline_at:
            raise RunError("no engine was up within rollout.start_timeout_s")
        if stop.wait(POLL_S):
            raise RunError("stopped before an engine was up")
