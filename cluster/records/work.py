"""How much of a run's time made progress, and what was done twice.

Useful time is the time inside finished steps, less what was repeated in them, over all time that drivers of the run
were alive. Steps that a resumed run repeats count once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

USEFUL, WALL = "run/useful_s", "run/wall_s"


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierWork:
    """Of earlier drivers of the run."""

    useful_s: float = 0.0
    """Of the steps that are kept."""
    wall_s: float = 0.0
    repeated_steps: tuple[int, ...] = ()
    """Recorded after the checkpoint that the run goes on from."""


def earlier_work(metrics: Sequence[Mapping[str, float]], step: int) -> EarlierWork:
    """From all metrics on disk, of a run that goes on after `step`."""
    kept = [figures for figures in metrics if figures["step"] <= step and USEFUL in figures]
    timed = [figures for figures in metrics if WALL in figures]
    repeated = [figures for figures in metrics if figures["step"] > step and "time/step_s" in figures]
    return EarlierWork(
        useful_s=kept[-1][USEFUL] if kept else 0.0,
        wall_s=timed[-1][WALL] if timed else 0.0,
        repeated_steps=tuple(int(figures["step"]) for figures in repeated),
    )


class WorkMeter:
    """Adds up the steps of this driver. `started_at`: when it began, on the same monotonic clock."""

    def __init__(self, before: EarlierWork, *, started_at: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_at = started_at - before.wall_s
        self._useful_s = before.useful_s
        self._lost_before = 0.0

    def step_done(self, seconds: float, lost_s: float) -> dict[str, float]:
        """Metrics after a step of `seconds`.

        Args:
            lost_s: seconds of this driver so far in which a re-forming or repeated learner made no progress, or groups
                waited for the first worker to come back.
        """
        lost_in_step = min(seconds, lost_s - self._lost_before)
        self._lost_before = lost_s
        self._useful_s += seconds - lost_in_step
        wall_s = self._clock() - self._began_at
        return {
            USEFUL: self._useful_s,
            WALL: wall_s,
            "run/useful_time": self._useful_s / wall_s if wall_s > 0 else 0.0,
            "waste/reform_s": lost_in_step,
        }
