"""How an autoscaler is told from Ray's stand-in for one."""

import asyncio
import json
import threading

import pytest

from cluster.runtime.nodes import NOTHING_SEEN, ClusterView, Lookout, placed_on, reports_node_types


def report(**fields):
    return json.dumps({"autoscaler_report": fields}).encode()


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (None, False),
        (b"", False),
        (json.dumps({"load_metrics_report": {}}).encode(), False),
        (report(active_nodes={"node_9f3a": 1}), False),
        (report(active_nodes={"ray.head.default": 1}), True),
        (report(active_nodes={"node_9f3a": 1}, node_type_mapping={"10.0.0.1": "gpu-workers"}), True),
    ],
)
def test_an_autoscaler_has_node_types_of_its_own(status, expected):
    assert reports_node_types(status) == expected


async def test_a_cluster_that_does_not_answer_is_asked_once_and_keeps_nothing_waiting():
    answers, asked = threading.Event(), []
    seen = ClusterView(nodes={"actor": "node"}, draining={})

    def look(actor_ids):
        asked.append(actor_ids)
        answers.wait(30)
        return seen

    lookout = Lookout(look, timeout_s=0.05)
    assert await lookout(["actor"]) is NOTHING_SEEN
    assert await lookout(["actor"]) is NOTHING_SEEN
    assert len(asked) == 1
    answers.set()
    async with asyncio.timeout(10):
        while await lookout(["actor"]) is not seen:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({}, None),
        ({"Address": {"NodeID": "9f3a", "Port": 0}, "Pid": 0}, None),
        ({"Address": {"NodeID": "9f3a", "Port": 34037}, "Pid": 0}, None),  # that of the node, which was asked
        ({"Address": {"NodeID": "9f3a", "Port": 10002}, "Pid": 4711}, "9f3a"),
    ],
)
def test_an_actor_has_room_once_it_has_a_process(entry, expected):
    assert placed_on(entry) == expected
