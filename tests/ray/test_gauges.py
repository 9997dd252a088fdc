"""The metrics of a run at the endpoint that Prometheus reads, on a Ray without a dashboard, as local runs start it."""

from __future__ import annotations

import re
import time
import urllib.request
from dataclasses import replace

import pytest
import ray

from cluster.records.events import Event
from cluster.runtime.gauges import RayMetrics
from cluster.status.readings import METRICS, StatusReadings, event_readings, step_readings
from tests.cluster.status.test_readings import FIGURES
from tests.cluster.status.test_views import STATUS
from tests.local_ray import ray_on_this_machine

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]
REPORT_MS = 500
DEADLINE_S = 60.0


def test_every_metric_arrives_under_its_name_with_the_tag_of_the_run_and_a_member_that_left_is_gone():
    early = RayMetrics("early")
    early(event_readings(Event(kind="join", who="a")))  # before Ray is up: dropped
    series = StatusReadings()
    with ray_on_this_machine(_system_config={"metrics_report_interval_ms": REPORT_MS}):
        publish = RayMetrics("tiny")
        publish([*step_readings(7, FIGURES), *event_readings(Event(kind="join", who="a")), *series.of(STATUS)])
        lines = scraped_until(lambda lines: all(any(m.exported + "{" in line for line in lines) for m in METRICS))
        assert all('run="tiny"' in line for line in lines)
        version = [line for line in lines if "ray_visionthink_member_version" in line]
        assert len(version) == 1
        assert 'member="rollout worker 0"' in version[0]
        assert version[0].endswith(" 3.0")
        publish(series.of(replace(STATUS, members=())))
        scraped_until(lambda lines: not any("member_version" in line for line in lines))
    publish(step_readings(8, FIGURES))  # after Ray has gone: dropped


def scraped_until(is_there) -> list[str]:
    """Lines of our metrics at the node's endpoint."""
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    deadline = time.monotonic() + DEADLINE_S
    lines: list[str] = []
    while time.monotonic() < deadline:
        time.sleep(REPORT_MS / 1000)
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                text = answer.read().decode()
        except OSError:
            continue  # the node's agent is coming up
        lines = [line for line in text.splitlines() if re.match(r"ray_visionthink_\w+\{", line)]
        if is_there(lines):
            return lines
    pytest.fail("\n".join(lines) or "no metric of ours")
