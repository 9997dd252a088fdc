"""Who can reach a cluster: a head of this process stays on this machine, one that others reach must ask for a token.

Whoever reaches an open head runs code on all of its nodes, so both sides of it are asked without a token: the GCS
before a run joins, the dashboard before a job is submitted.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

import grpc
import psutil
import requests
from ray._private import ray_constants

from actors.errors import RunError
from cluster.runtime.addresses import ClusterAddress, explain_open, is_loopback

ALLOW_OPEN = "VISIONTHINK_ALLOW_OPEN_CLUSTER"
"""Set to 1 on a private network where whoever reaches the cluster may run code on it."""
LOOPBACK_ONLY = "VISIONTHINK_LOOPBACK"
"""Set for the processes of a run that has all of them on this machine: they listen there alone."""
RAYS_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray binds to loopback where its clusters are not supported; this variable says so."""
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME")
ANSWER_S = 5.0
ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
CLOSED_CODES = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
SILENT_CODES = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
CLOSED_STATUSES = (301, 302, 303, 307, 401, 403)
"""A proxy may send strangers to its login page."""


def keep_on_this_machine() -> None:
    """Make Ray, the learner's ranks and the engines, which inherit this environment, listen on loopback only."""
    ray_constants.ENABLE_RAY_CLUSTER = False  # Ray has read its variable when it was imported
    interface = next(
        (name for name, ends in psutil.net_if_addrs().items() if any(end.address == "127.0.0.1" for end in ends)), None
    )
    os.environ.update({RAYS_SWITCH: "0", LOOPBACK_ONLY: "1"})
    os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")
    for name in INTERFACES if interface else ():
        os.environ.setdefault(name, str(interface))


def refuse_open_head(address: ClusterAddress) -> None:
    """Raise RunError where other machines can reach this head and it serves whoever asks."""
    if not is_loopback(address.host) and not _is_allowed() and _head_is_open(str(address)):
        raise RunError(explain_open(f"the Ray cluster at {address} ({address.source})", ALLOW_OPEN))


def refuse_open_dashboard(url: str) -> None:
    """Raise RunError where other machines can reach this dashboard and it serves whoever asks.

    One that does not answer is left to the caller, who has more to say.
    """
    host = urlsplit(url).hostname or ""
    if not is_loopback(host) and not _is_allowed() and _dashboard_is_open(url):
        raise RunError(explain_open(f"the Ray dashboard at {url}", ALLOW_OPEN))


def _is_allowed() -> bool:
    return os.environ.get(ALLOW_OPEN, "").strip().lower() in ("1", "true", "yes")


def _head_is_open(address: str) -> bool:
    """Whether a call without a token is let in; any answer but a refusal counts as that.

    Raises:
        RunError: there is no answer.
    """
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(ALIVE)(b"", timeout=ANSWER_S)
        except grpc.RpcError as error:
            if error.code() in SILENT_CODES:
                raise RunError(
                    f"the Ray cluster at {address} did not say within {ANSWER_S:g} s whether it asks for a token: try "
                    f"again, or look at the load of its head"
                ) from error
            return error.code() not in CLOSED_CODES
    return True


def _dashboard_is_open(url: str) -> bool:
    try:
        reply = requests.get(f"{url.rstrip('/')}/api/jobs/", timeout=ANSWER_S, allow_redirects=False)
    except requests.RequestException:
        return False
    return reply.status_code not in CLOSED_STATUSES
