"""How an autoscaler is told from Ray's stand-in for one."""

import json

import pytest

from cluster.runtime.nodes import reports_node_types


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
