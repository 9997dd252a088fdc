"""What Ray tells of nodes and of where actors are. The only file that asks Ray's private state for it.

Ray has no public call for these without its dashboard, which a run does not start.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.state import state as ray_state
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.exceptions import RayError
from ray.experimental.internal_kv import _internal_kv_get

from actors.causes import root_cause
from cluster.runtime.placement import ClusterSize

logger = logging.getLogger(__name__)

MAX_SINGLE_QUERIES = 8
"""Beyond so many actors, the table of all of them is cheaper."""
STATIC_NODE_PREFIX = "node_"
"""Of the names of node types where no autoscaler is configured: Ray makes one up for each node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    """A look at the cluster."""

    nodes: Mapping[str, str | None]
    """Actor to the node that has room for it, both as hexadecimal ids; None while it waits for one."""
    draining: Mapping[str, float]
    """Nodes that are about to leave, and the seconds until they do."""


NOTHING_SEEN = ClusterView(nodes={}, draining={})
ANSWER_S = 10.0


def look(actor_ids: Sequence[str]) -> ClusterView:
    """Blocks for a moment. Where the cluster does not answer, nothing is seen."""
    try:
        now_ms = time.time() * 1000  # the deadlines are those of another machine's clock
        draining = {
            node: max(0.0, (deadline_ms - now_ms) / 1000) if deadline_ms else float("inf")
            for node, deadline_ms in ray_state.get_draining_nodes().items()
        }
        return ClusterView(nodes=_nodes_of(actor_ids), draining=draining)
    except (RayError, OSError, RuntimeError) as error:
        logger.warning("Ray does not say where the run's processes are: %s", root_cause(error))
        return NOTHING_SEEN


class Lookout:
    """Looks at the cluster for a task. In threads of its own: Ray's answers have no deadline, and one that never comes
    must keep nothing else waiting, the end of this process included."""

    def __init__(self, look: Callable[[Sequence[str]], ClusterView] = look, *, timeout_s: float = ANSWER_S) -> None:
        self._look = look
        self._timeout_s = timeout_s
        self._answer: Future[ClusterView] | None = None

    async def __call__(self, actor_ids: Sequence[str]) -> ClusterView:
        """What is seen; nothing if Ray does not answer in time."""
        if self._answer is None or self._answer.done():
            self._answer = self._ask(actor_ids)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.shield(asyncio.wrap_future(self._answer))
        except TimeoutError:
            return NOTHING_SEEN

    def _ask(self, actor_ids: Sequence[str]) -> Future[ClusterView]:
        answer: Future[ClusterView] = Future()
        threading.Thread(
            target=lambda: answer.set_result(self._look(actor_ids)), name="look at the cluster", daemon=True
        ).start()
        return answer


def _nodes_of(actor_ids: Sequence[str]) -> dict[str, str | None]:
    if len(actor_ids) > MAX_SINGLE_QUERIES:
        table = ray_state.actor_table(None)
    else:
        table = {actor: ray_state.actor_table(actor) for actor in actor_ids}
    return {actor: placed_on(table.get(actor, {})) for actor in actor_ids}


def placed_on(entry: Mapping[str, Any]) -> str | None:
    """The node of an entry of the actor table. Before it has room there, Ray writes the node that it has asked for it,
    with the address of that node's own process."""
    node: str | None = entry.get("Address", {}).get("NodeID")
    return node if entry.get("Pid") else None


def cluster_size() -> ClusterSize:
    """Blocks for a moment."""
    return ClusterSize(
        now=ray.cluster_resources(),
        has_autoscaler=_has_autoscaler(),
        most=ray_state.get_max_resources_from_cluster_config(),
    )


def _has_autoscaler() -> bool:
    """Whether something adds nodes to this cluster when they are asked for."""
    if ray_state.get_cluster_config() is not None:
        return True
    if is_autoscaler_v2():
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        return any(is_configured(node.ray_node_type_name) for node in (*status.active_nodes, *status.idle_nodes))
    return reports_node_types(_internal_kv_get(ray_constants.DEBUG_AUTOSCALING_STATUS))


def reports_node_types(status: bytes | None) -> bool:
    """Whether an autoscaler's report (JSON) is of one with node types of its own, and not of Ray's stand-in."""
    if not status:
        return False
    report: Mapping[str, Any] = json.loads(status).get("autoscaler_report") or {}
    kinds = [*(report.get("active_nodes") or {}), *(report.get("node_type_mapping") or {}).values()]
    return any(is_configured(kind) for kind in kinds)


def is_configured(node_type: str) -> bool:
    """Whether a node is of a type that somebody has configured."""
    return bool(node_type) and not node_type.startswith(STATIC_NODE_PREFIX)
