"""Stops a run whose node is about to go away: preempted, drained by hand or taken back by the autoscaler.

A node that gets SIGTERM (Kubernetes, the shutdown of a spot instance) tells Ray's control service, and so does the
autoscaler where its cloud announces preemption. Ray shows it as a node that drains.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import ray
from ray.exceptions import RayError

from cluster.stopping import Reason, Stopping

POLL_S = 1.0
NOTICE = Reason(name="the notice that its node goes away", signum=signal.SIGTERM, is_notice=True)


@contextlib.contextmanager
def stop_when_preempted(
    stopping: Stopping, *, is_going: Callable[[], bool] | None = None, poll_s: float = POLL_S
) -> Iterator[None]:
    """Watch the node of this driver in the body, and stop the command when it drains.

    In a thread of its own: Ray's answer has no deadline, and one that never comes must keep nothing else waiting.
    """
    is_over, ask = threading.Event(), is_going or own_node_drains

    def watch() -> None:
        while not is_over.wait(poll_s):
            with contextlib.suppress(RayError, ConnectionError, RuntimeError):  # the run itself will see it
                if ask():
                    return stopping.request(NOTICE)

    threading.Thread(target=watch, name="preemption notices", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def own_node_drains() -> bool:
    """Whether the node of this driver is being drained. Blocks for milliseconds."""
    own = ray.get_runtime_context().get_node_id()
    return own in ray._private.state.state.get_draining_nodes()  # Ray has no public API for it
