"""Metrics of the cluster: what a run's figures become, and that the shipped dashboard asks for nothing else."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path

from cluster.records.events import Event
from cluster.status.readings import (
    METRICS,
    STEP_COUNTERS,
    STEP_GAUGES,
    Reading,
    StatusReadings,
    event_readings,
    step_readings,
)
from tests.cluster.status.test_views import STATUS, ranks, rollouts

DASHBOARD = Path(__file__).parents[3] / "cluster" / "manifests" / "grafana" / "visionthink.json"
FIGURES = {
    **dict.fromkeys((*STEP_GAUGES, *STEP_COUNTERS), 0.5),
    "time/step_s": 4.0,
    "time/collect_s": 3.0,
    "judge/queue_s": 0.25,
    "episodes/scored": 30.0,
    "episodes/unscored": 2.0,
    "policy/completion_tokens": 10.0,
}


def flat(readings: list[Reading]) -> dict[tuple[str, ...], float]:
    return {(r.metric.name.removeprefix("visionthink_"), *r.tags.values()): r.value for r in readings}


def test_a_step_becomes_rates_shares_and_seconds_by_stage():
    found = flat(step_readings(7, FIGURES))
    assert found["step",] == 7
    assert found["episodes_per_second",] == 8.0
    assert found["tokens_per_second",] == 80.0
    assert (found["stage_seconds", "rollout"], found["stage_seconds", "step"]) == (3.0, 4.0)
    assert found["queue_wait_seconds", "judge"] == 0.25
    assert found["tool_call_rate",] == found["useful_time_ratio",] == 0.5


def test_what_a_step_does_not_have_is_left_out():
    assert flat(step_readings(1, {})) == {("step",): 1.0}
    assert ("groups_lost",) not in flat(step_readings(1, {"groups/lost": 0.0})), "a counter grows or is silent"


def test_members_are_counted_by_role_and_state_and_leave_no_trace_when_they_go():
    series = StatusReadings()
    up = [replace(member, version=3) for member in rollouts("serving", "serving")]
    found = flat(series.of(replace(STATUS, members=(*up, *ranks("serving")))))
    assert found["members", "rollouts", "serving"] == 2
    assert found["member_version", "rollouts", "rollout worker 1"] == 3
    assert ("member_version", "learner", "learner rank 0") not in found, "it has none"
    assert found["judge_replicas",] == 2
    found = flat(series.of(replace(STATUS, members=(up[0], replace(up[1], state="draining")))))
    assert (found["members", "rollouts", "serving"], found["members", "rollouts", "draining"]) == (1, 1)
    assert found["members", "learner", "serving"] == 0
    found = flat(series.of(replace(STATUS, members=(up[0],))))
    assert found["members", "rollouts", "draining"] == 0
    assert math.isnan(found["member_version", "rollouts", "rollout worker 1"])
    assert flat(series.of(replace(STATUS, members=(up[0],), num_judges=None))) == {}, "nothing changed"
    found = flat(series.of(replace(STATUS, members=tuple(up))))
    assert found["member_version", "rollouts", "rollout worker 1"] == 3, "it is back"
    assert ("member_version", "rollouts", "rollout worker 0") not in found, "it has not changed"


def test_an_event_counts_one_of_its_kind():
    assert flat(event_readings(Event(kind="join", who="a"))) == {("events", "join"): 1.0}


def test_every_reading_has_exactly_the_tags_of_its_metric_and_is_registered():
    readings = [*step_readings(1, FIGURES), *event_readings(Event(kind="join", who="a"))]
    readings += StatusReadings().of(STATUS)
    assert {reading.metric for reading in readings} == set(METRICS), "all can be had"
    assert all(tuple(reading.tags) == reading.metric.tags for reading in readings)
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def panels() -> list[dict]:
    return json.loads(DASHBOARD.read_text())["panels"]


def test_the_dashboard_asks_for_metrics_that_a_run_has():
    known = {metric.exported: {"run", *metric.tags} for metric in METRICS}
    asked = set()
    for target in (target for panel in panels() for target in panel.get("targets", [])):
        names = set(re.findall(r"\bray_\w+", target["expr"]))
        assert names, target
        assert names <= known.keys(), target
        tags = set().union(*(known[name] for name in names))
        used = set(re.findall(r"\bby \(([^)]*)\)", target["expr"]))
        used = {tag.strip() for by in used for tag in by.split(",")}
        used |= set(re.findall(r"(\w+)=~?\"", target["expr"]))
        used |= set(re.findall(r"{{(\w+)}}", target.get("legendFormat", "")))
        assert used <= tags, target
        asked |= names
    assert asked == known.keys(), "every metric of a run is on the dashboard"


def test_the_dashboard_is_one_that_grafana_takes():
    board = json.loads(DASHBOARD.read_text())
    assert board["schemaVersion"] >= 36
    assert board["uid"]
    assert board["title"]
    assert board["id"] is None, "Grafana gives it one"
    assert {variable["name"] for variable in board["templating"]["list"]} == {"datasource", "run"}
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    for panel in panels():
        at = panel["gridPos"]
        assert at["x"] >= 0
        assert at["x"] + at["w"] <= 24
        assert min(at["w"], at["h"]) > 0
        assert panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs) > 0
    for one, other in itertools.combinations((panel["gridPos"] for panel in panels()), 2):
        is_beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        is_below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert is_beside or is_below, (one, other)
