"""The tasks whose data are generated here, and where a run looks for them."""

from __future__ import annotations

from typing import Literal, get_args

TaskName = Literal["shapes", "crop"]
DEFAULT_TASK: TaskName = "shapes"
TASK_NAMES: tuple[TaskName, ...] = get_args(TaskName)


def task_folder(task: TaskName) -> str:
    """Folder of train.parquet and heldout.parquet, relative to the working directory."""
    return f"data/{task}"
