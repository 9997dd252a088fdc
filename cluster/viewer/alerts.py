"""What somebody who opens a run should know first. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from statistics import fmean

from cluster.signal import StepSignal

MIN_STEPS = 3
"""A tool-call rate at its end counts from this many steps in a row on."""
MASKED_SHARE = 0.01
FALL = 0.1
"""Accuracy lost since the best stretch of steps."""
STRETCH = 5

Metrics = Sequence[Mapping[str, float]]


def alerts(metrics: Metrics, *, prompts_per_step: int, unreadable: Mapping[str, str], cause: str = "") -> list[str]:
    """One line per warning, the gravest first; `cause`: why the run does not run."""
    steps = [figures for figures in metrics if "groups/trained" in figures]
    lines = [cause] if cause else []
    if unreadable:
        name, why = next(iter(unreadable.items()))
        lines.append(f"{len(unreadable)} files of episodes cannot be read, such as {name}: {why}")
    lines += [line for line in (_no_signal(steps, prompts_per_step), *_ends(steps), _fall(steps)) if line]
    if steps and (last := steps[-1]):
        masked, scored = last.get("episodes/unscored", 0.0), last.get("episodes/scored", 0.0)
        if masked > MASKED_SHARE * (masked + scored):
            lines.append(
                f"step {last['step']:g}: {masked:g} of {masked + scored:g} episodes have no verdict and are masked"
            )
        if skipped := last.get("learner/skipped_updates", 0.0):
            lines.append(f"{skipped:g} optimizer steps were skipped: their loss or gradient was not finite")
        if passed := last.get("judge/canary_false_positive_rate", 0.0):
            lines.append(f"the judge passes {passed:.0%} of the wrong canaries: see `visionthink judge check`")
    if lost := sum(figures.get("groups/lost", 0.0) for figures in steps):
        lines.append(f"{lost:g} groups were lost to failures of workers or judges: see the events")
    return lines


def _no_signal(steps: Metrics, wanted: int) -> str:
    def is_starved(figures: Mapping[str, float]) -> bool:
        trained, without = int(figures["groups/trained"]), int(figures.get("groups/no_signal", 0))
        signal = StepSignal(
            step=int(figures["step"]), num_trained=trained, num_scored=trained + without, num_wanted=wanted
        )
        return signal.is_starved

    starved = list(takewhile(is_starved, reversed(steps)))
    if not starved:
        return ""
    trained = sum(figures["groups/trained"] for figures in starved)
    return (
        f"no signal since step {starved[-1]['step']:g}: {trained:g} trained groups in {len(starved)} steps, "
        f"{wanted} wanted in each; in all others the rewards are equal"
    )


def _ends(steps: Metrics) -> list[str]:
    lines = []
    for rate, what in ((0.0, "never asks for the full view"), (1.0, "always asks for the full view")):
        stuck = list(takewhile(lambda figures, rate=rate: figures.get("policy/ask_share") == rate, reversed(steps)))  # type: ignore[misc]
        if len(stuck) >= MIN_STEPS:
            lines.append(f"the policy {what} since step {stuck[-1]['step']:g}")
    return lines


def _fall(steps: Metrics) -> str:
    found = [(figures["step"], figures["reward/accuracy"]) for figures in steps if "reward/accuracy" in figures]
    means = [
        (found[end - 1][0], fmean(y for _, y in found[end - STRETCH : end])) for end in range(STRETCH, len(found) + 1)
    ]
    if not means:
        return ""
    best_at, best = max(means, key=lambda pair: pair[1])
    return (
        "" if best - means[-1][1] < FALL else f"accuracy fell from {best:.1%} at step {best_at:g} to {means[-1][1]:.1%}"
    )
