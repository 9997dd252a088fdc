"""The rows of a benchmark as samples that rollout workers play, and without pictures for the driver.

Where a data set is named by its path, a benchmark is named `SUITE:PATTERN`: `docvqa:/sets/DocVQA/val*.parquet`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from actors.data.benchmarks.layouts import LAYOUTS, Layout
from actors.data.benchmarks.row import BenchmarkRow
from actors.data.columns import PUBLISHED
from actors.data.dataset import Dataset
from actors.data.pictures import PictureColumn
from actors.data.tables import Rows, open_rows
from actors.episode import Sample, SampleRef
from actors.errors import DataError
from actors.prompts import strip_special_tokens
from configs.schema import ColumnsConfig


class BenchmarkSet:
    """Reads rows of one benchmark."""

    def __init__(self, name: str, path: str, rows: Rows) -> None:
        self.name = name
        self._path = path
        self._rows = rows
        self._layout = LAYOUTS[name]
        schemas = rows.schemas
        if not schemas:
            raise DataError(f"{path} has no rows: download {self._layout.hub_id} again")
        first = next(iter(schemas.values()))[1]
        image = next((column for column in self._layout.images if column in first.names), None)
        if image is None:
            wanted = " or ".join(self._layout.images)
            raise DataError(
                f"{path} has no column {wanted}: it is not {self._layout.hub_id}; its columns are {first.names}"
            )
        self._images = {number: PictureColumn.of(schema, image, rows.folder) for number, (_, schema) in schemas.items()}
        self._texts = [column for column in first.names if column not in (image, "image", "decoded_image")]

    @classmethod
    def open(cls, name: str, path: str) -> Self:
        """Open the files of a split: a pattern, or one file.

        Raises:
            DataError: nothing readable there, or another layout than the published one.
        """
        return cls(name, path, open_rows(path))

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def refs(self) -> list[SampleRef]:
        dataset = f"{self.name}:{self._path}"
        return [SampleRef(dataset=dataset, row=row, uid=f"{self.name}-{row}") for row in range(len(self))]

    def identity(self) -> str:
        """As `Dataset.identity`."""
        return self._rows.identity()

    def row(self, number: int) -> BenchmarkRow:
        """A row without its picture; DataError with the reason where it has no question or no answer."""
        return self._read(number, self._texts)[1]

    def read(self, ref: SampleRef) -> Sample:
        """The sample at `ref.row`; DataError with the reason when the row is unusable."""
        image = next(iter(self._images.values())).name
        (file, picture), row = self._read(ref.row, [*self._texts, image])
        try:
            encoded = self._images[file].read(picture)
        except DataError as error:
            raise DataError(f"row {ref.row} of {self._path}: {error}") from error
        question = strip_special_tokens(row.question).strip()
        return Sample(ref=ref, question=question, answer=row.reference, image=encoded, needs_full=None)

    def _read(self, number: int, columns: list[str]) -> tuple[tuple[int, object], BenchmarkRow]:
        file, values = self._rows.read(number, columns)
        picture = values.get(next(iter(self._images.values())).name)
        try:
            return (file, picture), self._layout.read(values)
        except (DataError, ValueError, TypeError, AttributeError) as error:
            raise DataError(f"row {number} of {self._path}: {error}") from error


def open_samples(path: str, columns: ColumnsConfig = PUBLISHED) -> Dataset | BenchmarkSet:
    """A data set by its path, or a benchmark by `SUITE:PATTERN`."""
    name, mark, pattern = path.partition(":")
    return BenchmarkSet.open(name, pattern) if mark and name in LAYOUTS else Dataset.open(path, columns)


def find_suite(name: str, folder: Path) -> str:
    """The files of a benchmark in a folder that holds several, or it alone: a pattern for `BenchmarkSet.open`.

    A folder belongs to a benchmark if it has its name or that of the published set, whatever the case and the signs.

    Raises:
        DataError: nothing there; says how to get it.
    """
    layout = LAYOUTS[name]
    if (folder / layout.hub_id).is_dir():
        found = [folder / layout.hub_id]
    else:
        wanted = {name, _plain(layout.hub_id.rpartition("/")[2])}
        below = sorted(folder.iterdir()) if folder.is_dir() else []
        found = [place for place in below if place.is_dir() and _plain(place.name) in wanted]
    for place in [*found, *([folder] if _plain(folder.name) in (name,) or not found else [])]:
        if pattern := _first_match(place, layout):
            return pattern
    raise DataError(
        f"{folder} holds no {name} ({' or '.join(layout.files[:2])}): download it, as in `hf download {layout.hub_id} "
        f"--repo-type dataset --local-dir {folder / name}`"
    )


def _first_match(place: Path, layout: Layout) -> str | None:
    return next((str(place / pattern) for pattern in layout.files if _any(place.glob(pattern))), None)


def _any(found: Iterable[Path]) -> bool:
    return next(iter(found), None) is not None


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.casefold())
