"""What the members of the fleet are made of, and what they need of workers, weights and cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from actors.fleet.membership import Policy, State
from actors.fleet.pool import Worker
from configs.schema import RolloutConfig


class MemberWorker(Worker, Protocol):
    """A worker that can be started, and whose end is noticed."""

    @property
    def actor_id(self) -> str: ...

    async def ready(self) -> None:
        """Return once its engine has generated something; RolloutError if it died, or raised an error."""

    async def ended(self) -> str:
        """Wait for the end of its process; returns the cause."""

    async def shutdown(self) -> None: ...


class Weights(Protocol):
    """Where joiners get the current version: `cluster.weights.WeightChannel`, or the weights on disk."""

    on_drop: Callable[[Worker, str], None]

    @property
    def version(self) -> int | None: ...
    def join(self, worker: Worker) -> None: ...
    def leave(self, worker: Worker) -> None: ...
    def confirmed(self, worker: Worker) -> int | None: ...
    async def catch_up(self, worker: Worker, say: Callable[[str], None]) -> None: ...


class Cluster(Protocol):
    """What is seen of the cluster (`cluster.runtime.nodes.ClusterView`)."""

    @property
    def nodes(self) -> Mapping[str, str | None]: ...
    @property
    def draining(self) -> Mapping[str, float]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """One member, for `visionthink status` and gauges."""

    name: str
    state: str
    version: int | None
    """Of the weights that it has confirmed."""
    num_groups: int
    """In flight."""
    node: str | None
    """Id of its node; None while it waits for one."""
    for_s: float
    """Seconds in this state."""
    waits_for: str
    """What keeps it from serving; empty if nothing does."""


@dataclass(slots=True, kw_only=True, eq=False)
class Seat:
    """A member and what is known of it. Mutable: `cluster.runtime.members` keeps it up to date."""

    slot: int
    worker: MemberWorker
    since: float
    is_placed: bool
    state: State = State.STARTING
    is_ready: bool = False
    is_broken: bool = False
    is_told_pending: bool = False
    death: str | None = None
    leaves_at: float | None = None
    node: str | None = None
    waits_for: str = ""
    syncing: asyncio.Task[None] | None = None
    probing: asyncio.Task[None] | None = None
    watching: tuple[asyncio.Task[None], ...] = ()


def policy_of(config: RolloutConfig) -> Policy:
    return Policy(
        start_timeout_s=config.start_timeout_s,
        progress_timeout_s=config.progress_timeout_s,
        drain_timeout_s=config.drain_timeout_s,
        max_restarts=config.max_restarts,
        restart_window_s=config.restart_window_s,
        waits_when_none_left=config.when_none_left == "wait",
        wait_timeout_s=config.wait_timeout_s,
    )
