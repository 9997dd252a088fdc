"""Hands the metrics of a run to Ray, whose agent on the driver's node shows them to Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

import ray
from ray.util.metrics import Counter, Gauge

from cluster.status.readings import METRICS, RUN, Metric, Reading


class RayMetrics:
    """Call it with readings. Those from before Ray is connected, or from after, are dropped."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._registered: dict[str, Counter | Gauge] = {}

    def __call__(self, readings: Iterable[Reading]) -> None:
        if not ray.is_initialized():
            return
        if not self._registered:
            self._registered = {metric.name: _registered(metric, self._run) for metric in METRICS}
        for reading in readings:
            metric = self._registered[reading.metric.name]
            if isinstance(metric, Counter):
                metric.inc(reading.value, tags=dict(reading.tags))
            else:
                metric.set(reading.value, tags=dict(reading.tags))


def _registered(metric: Metric, run: str) -> Counter | Gauge:
    kind = Counter if metric.is_counter else Gauge
    registered = kind(metric.name, description=metric.about, tag_keys=(RUN, *metric.tags))
    registered.set_default_tags({RUN: run})
    return registered
