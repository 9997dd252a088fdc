"""Determines the Ray cluster to join, words its errors, and lists hosts that bypass proxies. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "::1")
NO_PROXY = ("no_proxy", "NO_PROXY")
START_HERE = "RAY_ADDRESS=local starts Ray on this machine"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterAddress:
    """A cluster to join."""

    host: str
    port: int
    source: str
    """Where the address comes from, for messages."""
    remedy: str
    """What to do if the cluster does not respond."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """What driver and cluster must agree on."""

    ray: str
    python: str


def ray_folder(environment: Mapping[str, str]) -> Path:
    """Ray's session folder, by Ray's own rules."""
    return Path(environment.get("RAY_TMPDIR") or environment.get("TMPDIR") or "/tmp") / "ray"


def find_cluster(environment: Mapping[str, str]) -> ClusterAddress | None:
    """The cluster that Ray would join: RAY_ADDRESS, or the one that `ray start` recorded on this machine.

    None where Ray would start its own.

    Raises:
        ValueError: an address that a driver cannot join.
    """
    if given := environment.get("RAY_ADDRESS", "").strip():
        if given == "local":
            return None
        if given != "auto":
            remedy = f"start it with `ray start --head`, correct RAY_ADDRESS, or unset it ({START_HERE})"
            return _parse(given, f"RAY_ADDRESS={given}", remedy)
    note = ray_folder(environment) / "ray_current_cluster"
    try:
        left = note.read_text(encoding="utf-8").strip()
    except OSError:
        left = ""
    if not left:
        return None
    return _parse(left, f"{note} names it", f"if it is gone, `ray stop` clears this note; or {START_HERE}")


def _parse(address: str, source: str, remedy: str) -> ClusterAddress:
    scheme, separator, _ = address.partition("://")
    if separator:
        what = "is a Ray Client address" if scheme == "ray" else "is not a cluster address"
        raise ValueError(
            f"{source} {what}, which a run cannot use: give HOST:PORT of the head (6379 unless it was started with "
            f"--port) from one of its nodes, or use `visionthink submit --address http://HOST:8265 -- train ...`"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{source} is invalid: write HOST:PORT of the head, such as 10.0.0.1:6379")
    return ClusterAddress(host=host.strip("[]"), port=int(port), source=source, remedy=remedy)


def explain_unreachable(address: ClusterAddress, reason: str) -> str:
    return f"no Ray cluster responds at {address} ({address.source}): {reason}; {address.remedy}"


def explain_refused(address: ClusterAddress, message: str) -> str:
    """Message for a cluster that rejected this driver's token."""
    return (
        f"the Ray cluster at {address} requires a token: set RAY_AUTH_MODE=token and copy the head's ~/.ray/auth_token "
        f"to this machine (or set RAY_AUTH_TOKEN_PATH); Ray's message: {message[:120]}"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host. A name counts as what it says, without asking a name server."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def explain_open(what: str, variable: str) -> str:
    """Message for a cluster that serves whoever can reach it."""
    return (
        f"{what} asks for no token, so that whoever reaches it can run code there: start its head with "
        f"RAY_AUTH_MODE=token (KubeRay: authOptions), or set {variable}=1 on a private network"
    )


def version_problem(address: ClusterAddress, here: Versions, there: Versions) -> str | None:
    """Message for a cluster with other versions; None if they are equal."""
    if here == there:
        return None
    return (
        f"the Ray cluster at {address} runs Ray {there.ray} on Python {there.python}, this environment has Ray "
        f"{here.ray} on Python {here.python}: start the cluster from this environment, or use the cluster's"
    )


def bypass_proxies(environment: Mapping[str, str], hosts: Iterable[str]) -> dict[str, str]:
    """Environment variables that exempt these hosts from proxies, in addition to those already exempt."""
    listed = [host.strip() for name in NO_PROXY for host in environment.get(name, "").split(",")]
    kept = list(dict.fromkeys(host for host in (*listed, *hosts) if host))
    value = "*" if "*" in kept else ",".join(kept)
    return dict.fromkeys(NO_PROXY, value)


def own_hosts(url: str) -> list[str]:
    """The host of a URL if it is local or in a private network, which no proxy reaches."""
    host = urlsplit(url if "://" in url else f"http://{url}").hostname or ""
    try:
        return [host] if ip_address(host).is_private else []
    except ValueError:
        return [host] if host == "localhost" else []
