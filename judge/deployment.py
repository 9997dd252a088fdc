"""The LLM judges as an autoscaled Ray Serve deployment, called once per answer through a handle.

Runs that share a cluster share its Serve. Each takes away its own applications and nothing else; Serve itself stays up.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.config import AutoscalingConfig, HTTPOptions, ProxyLocation
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus

from actors.errors import JudgeError, root_cause
from configs.judges import JudgeConfig
from judge.llm.client import LLMJudge
from judge.verdict import GradeReply, Judge, JudgeRequest, grade_one

logger = logging.getLogger(__name__)

DEPLOYMENT_NAME = "judge"
LOOPBACK = "127.0.0.1"
# Calls build up and end within one training step, so the pool must react within seconds. A shorter look-back sees a
# step in load sooner, but takes single bursts for one and overshoots (simulated).
METRICS_INTERVAL_S, LOOK_BACK_PERIOD_S = 0.2, 1.5
POLL_S = 0.1
TEARDOWN_S = 15.0
"""Longest wait for an application that is stopped: nobody calls it any more, and Serve goes on by itself."""
CLOSE_S = 5.0
HEAD_POLL_S = 1.0
"""How often somebody who waits for Serve looks whether its cluster is still there."""
START_TRIES = 5
"""Of two runs that start Serve at the same moment one comes too late, and finds it there the next time."""


class PoolSize(NamedTuple):
    """Replicas of a pool."""

    num_running: int
    num_starting: int


class JudgeReplica:
    """One judge of the pool. Waiting for a backend does not block its other calls."""

    def __init__(self, config: JudgeConfig, make: Callable[[JudgeConfig], Judge]) -> None:
        self._judge = make(config)

    async def grade(self, request: JudgeRequest) -> GradeReply:
        return await grade_one(self._judge, request)

    async def pid(self) -> int:
        """Process id on its node, for fault drills."""
        return os.getpid()


class ServeJudgeHandle:
    """A Serve handle as the `JudgeHandle` of a pool: sorts failures of the cluster from bugs in a judge."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    def close(self) -> None:
        """Stop the router that runs behind the handle: left alone it would call Ray after Ray is gone."""
        if not _done_within(self._handle.shutdown, CLOSE_S, "close the handle of the judges"):
            logger.warning("the router of the judges did not stop within %g s", CLOSE_S)

    async def grade(self, request: JudgeRequest) -> GradeReply:
        """Reply of whichever replica Serve picks. Raises JudgeError where one was lost, or says that it failed."""
        response: Any = self._handle.grade.remote(request)
        try:
            reply: GradeReply = await response
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # Past the deadline: without this the replica would go on for a caller that has left.
                response.cancel()
                raise
            raise JudgeError("Serve cancelled the call") from error
        except (RayError, RayServeException) as error:
            if isinstance(error, RayTaskError) and not isinstance(error, JudgeError):
                raise  # a bug in a replica's code, which another try will not mend
            raise JudgeError(f"call to a judge failed: {type(error).__name__}: {root_cause(error)}") from error
        return reply


def serve_options(config: JudgeConfig) -> dict[str, Any]:
    """Options of the deployment.

    Replicas reserve no CPU: they wait for others most of the time. One takes all calls that may be under way, so that
    nothing queues in front of it while another starts, and Serve's policy is Little's law: calls under way divided by
    the target. One that is taken away ends its calls first, however long these may take.
    """
    accept_metrics_interval()
    limits = ("min_replicas", "max_replicas", "target_ongoing_requests", "upscale_delay_s", "downscale_delay_s")
    return {
        "name": DEPLOYMENT_NAME,
        "ray_actor_options": {"num_cpus": 0},
        "max_ongoing_requests": config.llm.max_concurrent,
        "autoscaling_config": AutoscalingConfig(
            **{name: getattr(config, name) for name in limits},
            metrics_interval_s=METRICS_INTERVAL_S,
            look_back_period_s=LOOK_BACK_PERIOD_S,
        ),
        "graceful_shutdown_timeout_s": config.timeout_s,
        "health_check_period_s": 2.0,
    }


def accept_metrics_interval() -> None:
    """Ray 2.60 warns of this field wherever it reads settings back, in threads as well, but reads no other yet."""
    warnings.filterwarnings("ignore", message="The `metrics_interval_s` field", category=DeprecationWarning)


def start_serve() -> None:
    """Have Serve up on this cluster, with HTTP proxies on the loopback interface of nodes that run replicas. Blocks.

    How Serve listens is settled for all runs when the first one starts it: an LLM judge of another needs the proxies,
    on a free port. Its own reports stay silent: what matters of them reaches the caller as an error.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        http = HTTPOptions(host=LOOPBACK, port=free.getsockname()[1])
    for num_left in reversed(range(START_TRIES)):
        try:
            serve.start(
                proxy_location=ProxyLocation.EveryNode,
                http_options=http,
                logging_config={"log_level": "WARNING", "enable_access_log": False},
            )
            return
        except ValueError:  # the name of Serve's controller was taken a moment ago
            if not num_left:
                raise
            time.sleep(POLL_S)


def deploy_judges(
    config: JudgeConfig, app_name: str, *, make: Callable[[JudgeConfig], Judge] | None = None
) -> ServeJudgeHandle:
    """Start the pool on the Ray cluster that this process is connected to, and wait until it serves. Blocks.

    What there is of a pool that did not come up is left to `delete_application`.

    Args:
        app_name: unique on the cluster.
        make: builds the judge in each replica. By default the configured one is built here, once, and travels: its
            wording and the secret of its prompts are the same everywhere, and no replica reads a file to start.

    Raises:
        ValueError: the wording of an LLM judge cannot be used.
        JudgeError: Serve could not bring the pool up, or not within `judge.start_timeout_s`.
    """
    deadline_at = time.monotonic() + config.start_timeout_s
    judge: Any = None if make else LLMJudge(config)
    application = serve.deployment(**serve_options(config))(JudgeReplica).bind(config, make or (lambda _: judge))
    target = serve.RunTarget(target=application, name=app_name, route_prefix=None)
    try:
        start_serve()
        # Serve's own wait for replicas has no end.
        (handle,) = serve.run_many([target], wait_for_applications_running=False)
        while not _is_running(app_name):
            if time.monotonic() > deadline_at:
                late = f"was not ready within judge.start_timeout_s={config.start_timeout_s:g}"
                raise JudgeError(f"the judge pool {app_name!r} {late}")
            time.sleep(POLL_S)
    except (RayServeException, RayError, RuntimeError, TimeoutError, ValueError) as error:
        raise JudgeError(f"the judge pool {app_name!r} failed to start: {root_cause(error)}") from error
    return ServeJudgeHandle(handle)


def _is_running(app_name: str) -> bool:
    application = serve.status().applications.get(app_name)
    if application is not None and application.status is ApplicationStatus.DEPLOY_FAILED:
        messages = [deployment.message for deployment in application.deployments.values() if deployment.message]
        raise JudgeError(
            f"the judge pool {app_name!r} failed to start: {root_cause((messages or [application.message])[0])}"
        )
    return application is not None and application.status is ApplicationStatus.RUNNING


def count_replicas(app_name: str) -> PoolSize | None:
    """Replicas of a pool right now; None where Serve does not say. Blocks for some milliseconds."""
    accept_metrics_interval()
    try:
        states = serve.status().applications[app_name].deployments[DEPLOYMENT_NAME].replica_states
    except (KeyError, RayError, RayServeException):
        return None
    return PoolSize(num_running=states.get("RUNNING", 0), num_starting=states.get("STARTING", 0))


def count_judges(app_name: str) -> int | None:
    """As `count_replicas`, of those that are up alone."""
    return size.num_running if (size := count_replicas(app_name)) else None


def delete_application(app_name: str, *, within_s: float = TEARDOWN_S) -> None:
    """Stop an application of Serve and wait until its replicas are gone, which end their calls first. Blocks.

    It hides no error that came before: what never was there is gone, and Serve goes on when nobody waits any longer.
    """
    failures: list[Exception] = []

    def delete() -> None:
        try:
            serve.delete(app_name)
        except (RayServeException, RayError, TimeoutError, RuntimeError) as error:
            failures.append(error)

    # Serve itself waits a minute for the application, and without a deadline for its controller.
    is_done = _done_within(delete, within_s, f"delete {app_name}")
    if not is_done or any(isinstance(failure, TimeoutError) for failure in failures):
        if ray.is_initialized() and not _head_is_up():
            logger.warning("%r is left with its cluster, whose head has ended", app_name)
        else:
            logger.warning("%r was not gone within %g s: Serve goes on to end it", app_name, within_s)
    elif failures:
        logger.info("%r is not served any more: %s", app_name, root_cause(failures[0]))


def _done_within(call: Callable[[], object], seconds: float, name: str) -> bool:
    """Call what has no deadline in a thread that ends with the process; whether it was done in time.

    Of a cluster whose head has ended nothing more is expected.
    """
    thread = threading.Thread(target=call, name=name, daemon=True)
    thread.start()
    deadline_at = time.monotonic() + seconds
    while thread.is_alive() and (left_s := deadline_at - time.monotonic()) > 0:
        thread.join(min(HEAD_POLL_S, left_s))
        if thread.is_alive() and ray.is_initialized() and not _head_is_up():
            break
    return not thread.is_alive()


def _head_is_up() -> bool:
    """Whether the head of this cluster takes connections. Calls to Ray would wait for it by themselves."""
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=HEAD_POLL_S).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return True  # unreachable from here, for now
    return True


def reap_applications(app_names: Sequence[str]) -> list[str]:
    """Stop what a driver that was killed has left on this cluster; returns what was there. Blocks.

    Raises:
        JudgeError: Serve does not answer.
    """
    accept_metrics_interval()
    try:
        left = [name for name in app_names if name in serve.status().applications]
    except (RayServeException, RayError, TimeoutError) as error:
        raise JudgeError(f"Serve does not tell what it runs: {root_cause(error)}") from error
    for name in left:
        delete_application(name)
    return left
