"""Joins the Ray cluster that is meant, or starts one. One that cannot be joined costs one line and ten seconds."""

from __future__ import annotations

import functools
import json
import logging
import os
import platform
import signal
import socket
import subprocess
import sys

import ray

from actors.causes import gist
from actors.errors import RunError
from cluster.addresses import (
    LOOPBACK,
    ClusterAddress,
    Versions,
    bypass_proxies,
    explain_refused,
    explain_unreachable,
    find_cluster,
    version_problem,
)
from cluster.probe import ANSWER_S
from configs.paths import ROOT

DIAL_S = 2.0
PROBE_S = 60.0
"""Against a hang: the probe gives the cluster few seconds itself, but has to import Ray first."""

logger = logging.getLogger(__name__)


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, or the one on this machine, or start one in this process.

    Raises:
        ValueError: RAY_ADDRESS is nothing that a driver can join.
        RunError: the cluster does not answer, refuses this driver, or has another version; or Ray does not start.
    """
    address = find_cluster(os.environ)
    os.environ.update(bypass_proxies(os.environ, [*LOOPBACK, *own_addresses(), *([address.host] if address else [])]))
    if address is not None:
        check_cluster(address)
    what = f"the Ray cluster at {address} could not be joined" if address else "Ray did not start on this machine"
    with _RayStart(what):
        # At "warning" Ray tells of its token authentication, which is on, at every start.
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="error", namespace="visionthink")


class _RayStart:
    """Turns what `ray.init` raises into a RunError: errors of many kinds, and the bare class Exception itself."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        is_rays = isinstance(error, ray.exceptions.RayError | ConnectionError | RuntimeError | ValueError | OSError)
        if error is not None and (is_rays or kind is Exception):
            raise RunError(f"{self._what}: {gist(error)}") from error


def check_address() -> None:
    """Raise what `connect` would raise about the cluster that is meant, without joining it."""
    if (address := find_cluster(os.environ)) is not None:
        check_cluster(address)


def own_addresses() -> list[str]:
    """The address by which other machines, and Ray on this one, know this machine."""
    try:
        return [ray.util.get_node_ip_address()]
    except OSError:
        return []


@functools.cache
def check_cluster(address: ClusterAddress) -> None:
    """Raise RunError with the reason and the remedy unless this driver can join the cluster.

    Ray would try for minutes. A cluster that was found well is not asked again.
    """
    try:
        socket.create_connection((address.host, address.port), timeout=DIAL_S).close()
    except OSError as error:
        reason = "it does not answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise RunError(explain_unreachable(address, reason)) from error
    found = _probe(address)
    if "refused" in found:
        raise RunError(explain_refused(address, found["refused"]))
    if "failed" in found:
        raise RunError(explain_unreachable(address, found["failed"]))
    here = Versions(ray=ray.__version__, python=platform.python_version())
    if os.environ.get("RAY_IGNORE_VERSION_MISMATCH"):
        return  # Ray itself goes by it
    if problem := version_problem(address, here, Versions(ray=found["ray"], python=found["python"])):
        raise RunError(problem)


def _probe(address: ClusterAddress) -> dict[str, str]:
    is_own = os.environ.get("RAY_ADDRESS", "").strip() in ("", "auto")
    command = [sys.executable, "-m", "cluster.probe", str(address), *(["--own"] if is_own else [])]
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
