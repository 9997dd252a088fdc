"""The report of an update. Does not import PyTorch, so that the driver can read it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from learner.batches.plan import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReport:
    """Result of one update, the same on every rank except for seconds and memory."""

    start_version: int
    """Version of the weights before the update."""
    optimizer_step: int
    """Version after the update: optimizer steps applied so far."""
    num_tokens: int
    """Generated tokens trained on, over all ranks."""
    seconds: float
    """In which the rank worked on it; between the parts of an update it may wait for the next."""
    metrics: dict[str, float]
    """Metrics by full name (`learner/...`, `time/...`)."""


class UpdateInParts:
    """Adds up what an update's report says, as the parts of the update are done."""

    def __init__(self, start_version: int) -> None:
        self.start_version = start_version
        self.steps: list[dict[str, float]] = []
        """Metrics of each optimizer step."""
        self.workload = Workload()
        self._seconds = 0.0

    @contextmanager
    def working(self) -> Iterator[None]:
        """The body works on the update."""
        started = time.monotonic()
        yield
        self._seconds += time.monotonic() - started

    def report(self, *, optimizer_step: int, others: Mapping[str, float]) -> UpdateReport:
        """The report after the last step; `others` are further metrics by full name."""
        return UpdateReport(
            start_version=self.start_version,
            optimizer_step=optimizer_step,
            num_tokens=int(sum(step["num_tokens"] for step in self.steps)),
            seconds=self._seconds,
            metrics={
                **{f"learner/{name}": value for name, value in summarize_steps(self.steps).items()},
                "learner/computed_share": self.workload.computed_share,
                "learner/rank_imbalance": self.workload.imbalance,
                **others,
            },
        )


def summarize_steps(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over an update's applied steps, and sums and maxima where the name says so.

    The mismatch between sampler and learner is taken from the first step: later ones compare updated weights.
    """
    applied = [step for step in steps if step["is_applied"]]
    figures: dict[str, float] = {"num_steps": float(len(applied)), "num_tokens": sum(s["num_tokens"] for s in steps)}
    for name in applied[0] if applied else ():
        values = [step[name] for step in applied]
        if name.endswith("_max"):
            figures[name] = max(values)
        elif name not in ("num_tokens", "is_applied"):
            figures[name] = sum(values) / len(values)
    if steps[0]["is_applied"]:
        figures.update({name: steps[0][name] for name in ("mismatch", "mismatch_max")})
    return figures
