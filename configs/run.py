"""Settings of a run as a whole: its name, place, seed and trackers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from configs.require import require

TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    name: str = "tiny"
    """Name of the run's folder inside `dir`: letters, digits, dots, dashes and underscores."""
    dir: str = "runs"
    """Folder that holds the runs."""
    seed: int = 0
    """Random seed of data order, sampling and learner. Any integer."""
    stop_grace_s: float = 30.0
    """Seconds from a signal or preemption notice to the end of the process: saving its last step and shutting down."""
    trackers: tuple[TrackerName, ...] = ("tensorboard",)
    """Experiment trackers beside the run's own records: tensorboard, wandb, mlflow, trackio. All write into the run's
    folder unless their own environment variables (WANDB_MODE, MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID) say otherwise."""

    def __post_init__(self) -> None:
        shown = list(self.trackers)
        require(len(set(shown)) == len(shown), "run.trackers", shown, "must name each tracker once")
        require(self.stop_grace_s > 0, "run.stop_grace_s", self.stop_grace_s, "must be above 0")
        legal = bool(self.name) and all(c.isalnum() or c in "._-" for c in self.name) and self.name.strip(".") != ""
        require(legal, "run.name", self.name, "must consist of letters, digits, '.', '_' and '-'")
