"""Metrics of a run for the cluster's monitoring: a pure mapping from a step's figures, its status and its events.

Prometheus sees them as `ray_visionthink_*`, counters with `_total` at the end, each with the tag `run`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.records.events import Event
from cluster.status.views import RunStatus

PREFIX = "visionthink_"
RUN = "run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """What a reading is of."""

    name: str
    about: str
    tags: tuple[str, ...] = ()
    """Beside `run`."""
    is_counter: bool = False

    @property
    def exported(self) -> str:
        """Its name in Prometheus."""
        return f"ray_{self.name}{'_total' if self.is_counter else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A value of a gauge, or by how much a counter grows. NaN ends the series of a gauge."""

    metric: Metric
    value: float
    tags: Mapping[str, str] = field(default_factory=dict)


def _gauge(name: str, about: str, *tags: str) -> Metric:
    return Metric(name=PREFIX + name, about=about, tags=tags)


def _counter(name: str, about: str, *tags: str) -> Metric:
    return Metric(name=PREFIX + name, about=about, tags=tags, is_counter=True)


STEP = _gauge("step", "Last finished step")
EPISODE_RATE = _gauge("episodes_per_second", "Episodes of the last step over its seconds")
TOKEN_RATE = _gauge("tokens_per_second", "Generated tokens of the last step over its seconds")
STAGE = _gauge("stage_seconds", "Seconds of the last step by stage", "stage")
QUEUE = _gauge("queue_wait_seconds", "Mean wait for a judge, and wait of the last step for verdicts alone", "queue")
MEMBERS = _gauge("members", "Members by role and state", "role", "state")
MEMBER_VERSION = _gauge("member_version", "Version of the weights of a member", "role", "member")
JUDGES = _gauge("judge_replicas", "Judge replicas that are up")
EVENTS = _counter("events", "Events by kind", "kind")
GROUPS_LOST = _counter("groups_lost", "Groups lost to failures of workers or judges")
EPISODES_AGAIN = _counter("episodes_again", "Episodes that were played again")
STEP_GAUGES = {
    "run/useful_time": _gauge(
        "useful_time_ratio", "Seconds of finished steps that were not repeated, over all seconds"
    ),
    "policy/version": _gauge("policy_version", "Version of the weights published last"),
    "policy/staleness_max": _gauge("staleness_steps", "Versions between sampling and training, the oldest token"),
    "policy/ask_share": _gauge("tool_call_rate", "Share of the episodes that called a tool"),
    "policy/visual_token_share": _gauge("visual_token_ratio", "Visual tokens relative to always-full"),
    "reward/accuracy": _gauge("accuracy", "Share of right answers among those with a verdict"),
    "reward/mean": _gauge("reward", "Mean reward"),
}
STAGES = {
    "time/collect_s": "rollout",
    "time/update_s": "update",
    "time/update_wait_s": "update_wait",
    "time/publish_s": "weight_sync",
    "time/step_s": "step",
}
QUEUES = {"judge/queue_s": "judge", "time/judge_wait_s": "verdicts"}
STEP_COUNTERS = {"groups/lost": GROUPS_LOST, "waste/episodes_again": EPISODES_AGAIN}
METRICS = (
    STEP, EPISODE_RATE, TOKEN_RATE, STAGE, QUEUE, MEMBERS, MEMBER_VERSION, JUDGES, EVENTS,
    *STEP_GAUGES.values(), *STEP_COUNTERS.values(),
)  # fmt: skip


def step_readings(step: int, figures: Mapping[str, float]) -> list[Reading]:
    """Of a finished step; what it does not have is left out."""
    readings = [Reading(metric=STEP, value=float(step))]
    readings += [Reading(metric=m, value=figures[key]) for key, m in STEP_GAUGES.items() if key in figures]
    for metric, names in ((STAGE, STAGES), (QUEUE, QUEUES)):
        (tag,) = metric.tags
        readings += [
            Reading(metric=metric, value=figures[key], tags={tag: name})
            for key, name in names.items()
            if key in figures
        ]
    readings += [Reading(metric=m, value=figures[key]) for key, m in STEP_COUNTERS.items() if figures.get(key, 0) > 0]
    num_episodes = figures.get("episodes/scored", 0.0) + figures.get("episodes/unscored", 0.0)
    if (seconds := figures.get("time/step_s", 0.0)) > 0:
        readings.append(Reading(metric=EPISODE_RATE, value=num_episodes / seconds))
        num_tokens = num_episodes * figures.get("policy/completion_tokens", 0.0)
        readings.append(Reading(metric=TOKEN_RATE, value=num_tokens / seconds))
    return readings


def event_readings(event: Event) -> list[Reading]:
    return [Reading(metric=EVENTS, value=1.0, tags={"kind": event.kind})]


class StatusReadings:
    """Of each status, what changed since the one before: a gauge keeps its value, and members may be many.

    A state that nobody is in any more becomes 0, and the version of a member that left ends.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[Metric, str, str], float] = {}

    def of(self, status: RunStatus) -> list[Reading]:
        values = dict.fromkeys((series for series in self._values if series[0] is MEMBERS), 0.0)
        for member in status.members:
            state = (MEMBERS, str(member.role), member.state)
            values[state] = values.get(state, 0.0) + 1
            if member.version is not None:
                values[MEMBER_VERSION, member.role, member.name] = float(member.version)
        for series in self._values.keys() - values.keys():
            if series[0] is MEMBER_VERSION and not math.isnan(self._values[series]):
                values[series] = math.nan
        readings = [
            Reading(metric=series[0], value=value, tags=dict(zip(series[0].tags, series[1:], strict=True)))
            for series, value in values.items()
            if self._values.get(series) != value
        ]
        self._values = values
        if status.num_judges is not None:
            readings.append(Reading(metric=JUDGES, value=float(status.num_judges)))
        return readings
