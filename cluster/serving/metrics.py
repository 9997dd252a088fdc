"""Metrics in Prometheus' text format. With PROMETHEUS_MULTIPROC_DIR set, those of all replicas of a node together."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from cluster.serving.policy import Answered

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """What an endpoint counts."""

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        self._requests = Counter(
            "visionthink_requests", "Requests for completions, by HTTP status.", ["status"], registry=own
        )
        self._inside = Gauge(
            "visionthink_requests_inside", "Served or waiting.", multiprocess_mode="livesum", registry=own
        )
        self._seconds = Histogram(
            "visionthink_answer_seconds", "From the first prompt to the answer.", buckets=_SECONDS, registry=own
        )
        self._answers = Counter(
            "visionthink_answers", "Answers, by whether the policy asked.", ["asked", "status"], registry=own
        )
        self._tokens = Counter("visionthink_tokens", "Tokens of answers, by kind.", ["kind"], registry=own)
        self._calls = Counter("visionthink_tool_calls", "Calls that showed a view, by tool.", ["tool"], registry=own)
        self._tool_tokens = Counter(
            "visionthink_tool_visual_tokens", "Visual tokens of what calls showed, by tool.", ["tool"], registry=own
        )

    def set_inside(self, number: int) -> None:
        self._inside.set(number)

    def request_done(self, status: int) -> None:
        self._requests.labels(status).inc()

    def answered(self, answered: Answered) -> None:
        episode = answered.episode
        self._seconds.observe(answered.seconds)
        self._answers.labels("yes" if episode.asked else "no", episode.status.value).inc()
        counts = {
            "prompt": answered.num_prompt_tokens,
            "completion": episode.num_generated_tokens,
            "visual": episode.num_visual_tokens,
            "visual_always_full": answered.num_full_tokens,
        }
        for kind, count in counts.items():
            self._tokens.labels(kind).inc(count)
        for turn in episode.calls:
            self._calls.labels(turn.tool).inc()
            self._tool_tokens.labels(turn.tool).inc(turn.num_visual_tokens)

    def page(self) -> bytes:
        folder = os.environ.get(FOLDER_VARIABLE)
        if folder is None:
            return generate_latest(self._registry)
        for file in Path(folder).glob("gauge_live*_*.db"):
            pid = int(file.stem.rpartition("_")[2])
            if not psutil.pid_exists(pid):
                mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
