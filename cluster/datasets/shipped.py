"""Generates the shapes task: the default data set, which a command that needs it makes itself."""

from __future__ import annotations

from pathlib import Path

from actors.errors import DataError
from cluster.shell import progress_bar
from configs.schema import Config, DataConfig

DEFAULT_SHAPES = Path("data/shapes")


def make_missing_data(settings: Config) -> None:
    """Generate the default data set if it is configured and missing, in any folder. Any other path must exist."""
    folder = missing_shapes(settings.data)
    if folder is None:
        return
    try:
        make_data(folder, 8000, 500, 0)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written to ({error.strerror}): set data.train and data.heldout, or generate the data "
            f"elsewhere with `visionthink data make --out FOLDER`"
        ) from error


def missing_shapes(data: DataConfig) -> Path | None:
    """Folder of the default data set if it has to be generated; None if it exists or other data is configured."""
    paths = (Path(data.train), Path(data.heldout))
    folder = paths[0].parent
    is_default = paths == (folder / "train.parquet", folder / "heldout.parquet")
    is_default = is_default and folder.parts[-len(DEFAULT_SHAPES.parts) :] == DEFAULT_SHAPES.parts
    return folder if is_default and not all(path.exists() for path in paths) else None


def make_data(out: Path, train_rows: int, heldout_rows: int, seed: int) -> None:
    from actors.data.shapes import make_shapes

    num_done = 0

    def count(split: str, num_rows: int) -> None:
        nonlocal num_done
        num_done += num_rows
        advance(num_done, train_rows + heldout_rows)

    with progress_bar(f"generating {out}") as advance:
        make_shapes(out, train_rows=train_rows, heldout_rows=heldout_rows, seed=seed, progress=count)
