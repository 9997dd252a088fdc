"""The report of an update. Does not import PyTorch, so that the driver can read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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
    metrics: dict[str, float]
    """Metrics by full name (`learner/...`, `time/...`)."""


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
