"""A Ray of three nodes on one machine, the processes of a run on it, and what happens to them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
from ray.cluster_utils import Cluster

QUICK_DEATHS = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}
"""A lost node is seen in seconds; quicker checks take a busy machine for a lost node."""
NODE = {"num_cpus": 1, "object_store_memory": 200_000_000}
RANK, WORKER, JUDGE = "ray::RankHost", "ray::RolloutWorker", "ray::ServeReplica"
PAUSE_S = 0.02


class ThreeNodes:
    """The head and two nodes, with room for two members each."""

    def __init__(self) -> None:
        os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
        head = {**NODE, "include_dashboard": False, "_system_config": QUICK_DEATHS}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            self.add_node()
        self.environment = {"RAY_ADDRESS": self._cluster.address, "VISIONTHINK_ALLOW_OPEN_CLUSTER": "1"}

    def add_node(self) -> None:
        self._cluster.add_node(**NODE)

    def processes(self, title: str) -> list[psutil.Process]:
        """Those of the run's members, oldest first."""
        return [process for node in self._nodes for process in self._of_node(node, title)]

    def node_of(self, title: str) -> Any:
        """A node beside the head that has such a member."""
        return next(node for node in self._cluster.worker_nodes if self._of_node(node, title))

    def remove_node(self, node: Any) -> None:
        self._cluster.remove_node(node, allow_graceful=False)

    def shutdown(self) -> None:
        self._cluster.shutdown()

    @property
    def _nodes(self) -> list[Any]:
        nodes: list[Any] = [self._cluster.head_node, *self._cluster.worker_nodes]
        return nodes

    def _of_node(self, node: Any, title: str) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        for raylet in node.all_processes["raylet"]:
            for process in _children(raylet.process.pid):
                if _title(process).startswith(title):
                    found.append(process)
        return sorted(found, key=_started_at)


@contextmanager
def three_nodes() -> Iterator[ThreeNodes]:
    nodes = ThreeNodes()
    try:
        yield nodes
    finally:
        nodes.shutdown()


def wait_until(is_true: Callable[[], bool], what: str, within_s: float = 600.0) -> None:
    deadline = time.monotonic() + within_s
    while not is_true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {within_s:g} s")
        time.sleep(PAUSE_S)


def _started_at(process: psutil.Process) -> float:
    return float(process.create_time())


def _children(pid: int) -> list[psutil.Process]:
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def is_in(process: psutil.Process, call: str) -> bool:
    """Whether an actor works on this call now."""
    return f".{call}" in _title(process)
