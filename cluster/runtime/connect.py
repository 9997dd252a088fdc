"""Joins the configured Ray cluster or starts one; an unusable cluster is reported within seconds."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping

import ray
from ray._private import services

from actors.causes import root_cause
from actors.errors import RunError
from cluster.runtime.addresses import (
    LOOPBACK,
    ClusterAddress,
    Versions,
    bypass_proxies,
    explain_refused,
    explain_unreachable,
    find_cluster,
    version_problem,
)
from cluster.runtime.exposure import keep_on_this_machine, refuse_open_head
from cluster.runtime.probe import ANSWER_S
from configs.paths import ROOT

DIAL_S = 2.0
PROBE_S = 60.0
"""Guards against a hang: the probe itself allows seconds, but has to import Ray first."""

logger = logging.getLogger(__name__)


def connect(environment: Mapping[str, str] | None = None) -> None:
    """Join the cluster that RAY_ADDRESS names, or the one on this machine, or start one in this process.

    Args:
        environment: variables that all processes of this driver in the cluster get.

    Raises:
        ValueError: RAY_ADDRESS is not an address that a driver can join.
        RunError: the cluster does not respond, rejects this driver, or has other versions; or Ray does not start.
    """
    address = find_cluster(os.environ)
    os.environ.update(bypass_proxies(os.environ, [*LOOPBACK, *own_addresses(), *([address.host] if address else [])]))
    if address is None:
        keep_on_this_machine()
    else:
        check_cluster(address)
    what = f"the Ray cluster at {address} could not be joined" if address else "Ray did not start on this machine"
    with _RayStart(what), signals_kept(), groups_of_their_own():
        # At "warning", Ray reports at every start that token authentication is on.
        ray.init(
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            namespace="visionthink",
            runtime_env={"env_vars": dict(environment)} if environment else None,
        )


@contextlib.contextmanager
def signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM over when it starts in the body, to exit on the spot: it is given back to this process."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Ray leaves signals alone there
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as exit_:
        if exit_.code != signal.SIGTERM:
            raise
        signal.signal(signal.SIGTERM, handler)
        os.kill(os.getpid(), signal.SIGTERM)
        raise RunError("stopped while Ray was starting") from None
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def groups_of_their_own() -> Iterator[None]:
    """What Ray starts in the body gets none of the signals for this terminal or process group.

    `timeout`, supervisors and terminals tell a whole group. Ray's own processes would end at once, and a run could
    not save, nor an endpoint finish its requests. They end with this process still: Ray has the kernel see to that.
    They stay in the session: Linux shares cores out between sessions, and a busy terminal would take half of them.
    """
    plain = services.ConsolePopen
    services.ConsolePopen = functools.partial(plain, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = plain


class _RayStart:
    """Turns errors of `ray.init` into a RunError: many types, among them the bare class Exception."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        is_rays = isinstance(error, ray.exceptions.RayError | ConnectionError | RuntimeError | ValueError | OSError)
        if error is not None and (is_rays or kind is Exception):
            raise RunError(f"{self._what}: {root_cause(error)}") from error


def check_address() -> None:
    """Raise what `connect` would raise about the cluster, without joining it."""
    if (address := find_cluster(os.environ)) is not None:
        check_cluster(address)


def own_addresses() -> list[str]:
    """The address of this machine in the network and in Ray."""
    try:
        return [ray.util.get_node_ip_address()]
    except OSError:
        return []


@functools.cache
def check_cluster(address: ClusterAddress) -> None:
    """Raise RunError with the reason and the remedy unless this driver can join the cluster.

    Ray itself would retry for minutes. Successful checks are cached.
    """
    try:
        socket.create_connection((address.host, address.port), timeout=DIAL_S).close()
    except OSError as error:
        reason = "it does not respond" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise RunError(explain_unreachable(address, reason)) from error
    found = _probe(address)
    if "refused" in found:
        raise RunError(explain_refused(address, found["refused"]))
    if "failed" in found:
        raise RunError(explain_unreachable(address, found["failed"]))
    refuse_open_head(address)
    here = Versions(ray=ray.__version__, python=platform.python_version())
    if os.environ.get("RAY_IGNORE_VERSION_MISMATCH"):
        return  # Ray honours it as well
    if problem := version_problem(address, here, Versions(ray=found["ray"], python=found["python"])):
        raise RunError(problem)


def _probe(address: ClusterAddress) -> dict[str, str]:
    is_own = os.environ.get("RAY_ADDRESS", "").strip() in ("", "auto")
    command = [sys.executable, "-m", "cluster.runtime.probe", str(address), *(["--own"] if is_own else [])]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PROBE_S, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"the probe of it was not done within {PROBE_S:g} s"}
    if done.returncode == -signal.SIGALRM:
        return {"failed": f"something listens there, but did not answer as Ray within {ANSWER_S} s"}
    try:
        found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        logger.debug("probe of %s: %s", address, done.stderr)
        return {"failed": "something listens there, but it is not Ray"}
    return found
