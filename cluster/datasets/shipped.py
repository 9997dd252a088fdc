"""Generates the data of the shipped tasks, which a command that needs them makes itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from actors.errors import DataError
from cluster.shell import progress_bar
from configs.schema import Config, DataConfig
from configs.tasks import DEFAULT_TASK, TASK_NAMES, TaskName, task_folder


def make_missing_data(settings: Config) -> None:
    """Generate the data of a shipped task if they are configured and missing, in any folder. Any other path must
    exist."""
    found = missing_task(settings.data)
    if found is None:
        return
    task, folder = found
    try:
        make_data(folder, 8000, 500, 0, task=task)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written to ({error.strerror}): set data.train and data.heldout, or generate the data "
            f"elsewhere with `visionthink data make --task {task} --out FOLDER`"
        ) from error


def missing_task(data: DataConfig) -> tuple[TaskName, Path] | None:
    """Task and folder of data that have to be generated; None if they exist or other data are configured."""
    paths = (Path(data.train), Path(data.heldout))
    folder = paths[0].parent
    if paths != (folder / "train.parquet", folder / "heldout.parquet") or all(path.exists() for path in paths):
        return None
    tails = {task: Path(task_folder(task)).parts for task in TASK_NAMES}
    return next(((task, folder) for task, tail in tails.items() if folder.parts[-len(tail) :] == tail), None)


def make_data(out: Path, train_rows: int, heldout_rows: int, seed: int, *, task: TaskName = DEFAULT_TASK) -> None:
    from actors.data.crop import make_crop
    from actors.data.shapes import make_shapes

    makers: dict[TaskName, Callable[..., Any]] = {"shapes": make_shapes, "crop": make_crop}
    num_done = 0

    def count(split: str, num_rows: int) -> None:
        nonlocal num_done
        num_done += num_rows
        advance(num_done, train_rows + heldout_rows)

    with progress_bar(f"generating {out}") as advance:
        makers[task](out, train_rows=train_rows, heldout_rows=heldout_rows, seed=seed, progress=count)
