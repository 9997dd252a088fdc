"""W&B, MLflow and Trackio as trackers. Each is offline, in the run's folder, unless its own variables say otherwise.

W&B: WANDB_MODE (`wandb sync RUN/wandb/...` sends an offline run later). MLflow: MLFLOW_TRACKING_URI. Trackio:
TRACKIO_DIR, TRACKIO_SPACE_ID. A resumed run goes on under the same id.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from actors.errors import RunError
from cluster.preflight.packages import TRACKERS, sync_command

logger = logging.getLogger(__name__)

PROJECT = "visionthink"
MAX_PARAM_CHARS = 500
"""MLflow's limit."""


Row = Sequence[Any]


class Tracker(Protocol):
    """Takes what a run records. May raise anything."""

    def log_step(self, step: int, figures: Mapping[str, float]) -> None:
        """Metrics of a step, or of an evaluation after it."""

    def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
        """A table of plain values; `name` is `episodes` or `heldout`."""

    def finish(self) -> None:
        """Write what is left."""


def _missing(package: str) -> RunError:
    return RunError(f"{package} is not installed: `{sync_command(TRACKERS)}`, or leave it out of run.trackers")


class Wandb:
    def __init__(self, folder: Path, name: str, run_id: str, settings: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb") from error
        self._table = wandb.Table
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        quiet = wandb.Settings(silent=True, console="off")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            id=run_id,
            dir=str(folder),
            config=dict(settings),
            resume="allow",
            mode=mode,
            settings=quiet,
        )
        # W&B's own step only grows, and a resumed run repeats steps.
        self._run.define_metric("*", step_metric="step")

    def log_step(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log({**figures, "step": step})

    def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
        table = self._table(columns=list(columns), data=[list(row) for row in rows], allow_mixed_types=True)
        self._run.log({name: table, "step": step})

    def finish(self) -> None:
        self._run.finish()


class Mlflow:
    def __init__(self, folder: Path, name: str, run_id: str, settings: Mapping[str, Any]) -> None:
        address = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not address:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # a folder needs neither a server nor a database
            address = (folder / "mlflow").absolute().as_uri()
        try:
            from mlflow import MlflowClient
            from mlflow.entities import Metric, Param
        except ImportError as error:
            raise _missing("mlflow-skinny") from error
        self._metric = Metric
        self._client = MlflowClient(tracking_uri=address)
        experiment = self._client.get_experiment_by_name(PROJECT)
        number = experiment.experiment_id if experiment else self._client.create_experiment(PROJECT)
        earlier = self._client.search_runs([number], filter_string=f"tags.visionthink_run = '{run_id}'", max_results=1)
        if earlier:
            self._id = earlier[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        self._id = self._client.create_run(number, run_name=name, tags={"visionthink_run": run_id}).info.run_id
        params = [Param(key, str(value)[:MAX_PARAM_CHARS]) for key, value in _flat(settings)]
        for start in range(0, len(params), 100):  # most that a call takes
            self._client.log_batch(self._id, params=params[start : start + 100])

    def log_step(self, step: int, figures: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(self._id, [self._metric(key, value, now, step) for key, value in figures.items()])

    def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
        table = {"columns": list(columns), "data": [list(row) for row in rows]}
        self._client.log_dict(self._id, table, f"{name}/step-{step:06d}.json")

    def finish(self) -> None:
        self._client.set_terminated(self._id)


class Trackio:
    def __init__(self, folder: Path, name: str, run_id: str, settings: Mapping[str, Any]) -> None:
        os.environ.setdefault("TRACKIO_DIR", str((folder / "trackio").absolute()))  # read at import
        try:
            import trackio
        except ImportError as error:
            raise _missing("trackio") from error
        _quiet("trackio")
        self._table = trackio.Table
        self._run = trackio.init(
            project=PROJECT,
            name=f"{name}-{run_id}",
            space_id=os.environ.get("TRACKIO_SPACE_ID"),
            config=dict(_flat(settings)),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log_step(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
        self._run.log({name: self._table(columns=list(columns), data=[list(row) for row in rows])}, step=step)

    def finish(self) -> None:
        self._run.finish()


def _quiet(package: str) -> None:
    """Keep its modules from printing, also at exit: the last line of stdout is a run's result."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == package:
            vars(module)["print"] = lambda *parts, **_: logger.debug("%s", " ".join(map(str, parts)))


def _flat(settings: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in settings.items():
        found += _flat(value, f"{path}{name}.") if isinstance(value, Mapping) else [(f"{path}{name}", value)]
    return found


ADAPTERS: dict[str, Callable[[Path, str, str, Mapping[str, Any]], Tracker]] = {
    "wandb": Wandb,
    "mlflow": Mlflow,
    "trackio": Trackio,
}
