"""Samples of a data set, the order in which they are drawn, and accounting of unusable rows."""

from __future__ import annotations

import glob
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from actors.data.columns import PUBLISHED, columns_of_files, read_text
from actors.data.tables import Rows, open_rows
from actors.data.texts import is_blank
from actors.episode import Sample, SampleRef
from actors.errors import DataError
from actors.hub import local_copy
from actors.prompts import IMAGE_MARK, strip_special_tokens
from configs.schema import ColumnsConfig
from configs.tasks import DEFAULT_TASK, TASK_NAMES, TaskName, task_folder

NUM_ROWS_TRIED = 8
"""Rows whose images are checked when a data set is opened."""
MIN_SKIPPED = 10
"""The fraction of skipped rows is only checked from this many skipped rows on."""
NUM_REASONS_SHOWN = 3
"""Reasons shown in the error that stops a run, of the latest skipped rows."""


class Dataset:
    """Reads rows one at a time. Images stay encoded; `actors.images` decodes them."""

    def __init__(self, path: str, rows: Rows, columns: ColumnsConfig = PUBLISHED) -> None:
        self._path = path
        self._rows = rows
        self._columns = columns_of_files(path, rows.schemas, rows.folder, columns)
        self._names = next(iter(self._columns.values())).names
        self._check_pictures()

    @classmethod
    def open(cls, path: str, columns: ColumnsConfig = PUBLISHED) -> Self:
        """Open a Parquet file, a folder or a pattern (`d/train-*`) of them, or a Hugging Face `save_to_disk` folder.

        Args:
            columns: of a set of another layout.

        Raises:
            DataError: nothing readable there, more than one split, no rows, or columns that no sample can be read from.
        """
        made = next((task for task in TASK_NAMES if task_folder(task) in Path(path).as_posix()), None)
        if made is not None and not Path(path).exists() and not glob.glob(path):
            raise DataError(f"{path} does not exist: generate it with `visionthink data make{_of_task(made)}`")
        rows = open_rows(local_copy(path))
        if not len(rows):
            raise DataError(f"{path} has no rows: give a file or a folder that has some")
        return cls(path, rows, columns)

    def __len__(self) -> int:
        return len(self._rows)

    def identity(self) -> str:
        """Short hash of file names, sizes, number of rows and columns, which must be equal when a run is resumed.

        Images in separate files are not included.
        """
        return self._rows.identity()

    def read(self, ref: SampleRef) -> Sample:
        """The sample at `ref.row`; DataError with the reason when the row is unusable."""
        number, values = self._rows.read(ref.row, self._names)
        columns = self._columns[number]
        try:
            question = strip_special_tokens(read_text(columns.question, values)).strip()
            if is_blank(question):
                raise DataError(f"{columns.question.name} has no text besides marks such as {IMAGE_MARK}")
            answer = read_text(columns.answer, values)
            image = columns.read_image(values)
        except DataError as error:
            raise DataError(f"row {ref.row} of {self._path}: {error}") from error
        return Sample(
            ref=ref,
            question=question,
            answer=answer,
            image=image,
            needs_full=columns.read_needs_full(values),
            needs=columns.read_needs(values),
            region=columns.read_region(values),
        )

    def _check_pictures(self) -> None:
        """Reject a data set whose first rows all refer to images that cannot be found."""
        columns = next(iter(self._columns.values()))
        reasons: list[str] = []
        for row in self._rows.first_rows(NUM_ROWS_TRIED, [columns.image_path.column]):
            try:
                columns.read_image(row)
            except DataError as error:
                if columns.has_text_for_image(row):
                    reasons.append(str(error))
                    continue
            return
        if reasons:
            raise DataError(f"row 0 of {self._path}: {reasons[0]}")


def _of_task(task: TaskName) -> str:
    return "" if task == DEFAULT_TASK else f" --task {task}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CursorState:
    """State needed to continue drawing where a run stopped."""

    seed: int
    epoch: int
    position: int
    """Rows of the epoch already drawn."""


class PromptCursor:
    """Draws every row once per epoch, in an order that depends on seed and epoch. Pure."""

    def __init__(self, *, dataset: str, num_rows: int, seed: int) -> None:
        if num_rows < 1:
            raise ValueError(f"num_rows={num_rows} is invalid: must be at least 1")
        self._dataset = dataset
        self._num_rows = num_rows
        self._seed = seed
        self.restore(CursorState(seed=seed, epoch=0, position=0))

    def take(self, num_prompts: int) -> list[SampleRef]:
        """The next rows, continuing with the next epoch where this one ends."""
        return [self._next() for _ in range(num_prompts)]

    @property
    def num_rows(self) -> int:
        return self._num_rows

    @property
    def num_taken(self) -> int:
        """Rows drawn since the first epoch began."""
        return self._epoch * self._num_rows + self._position

    def state(self) -> CursorState:
        return CursorState(seed=self._seed, epoch=self._epoch, position=self._position)

    def restore(self, state: CursorState) -> None:
        """Continue from the state of a cursor with the same seed and data set; ValueError if they differ."""
        if state.seed != self._seed:
            raise ValueError(f"{state} cannot be restored under run.seed={self._seed}: resume with the original seed")
        if not (state.epoch >= 0 and 0 <= state.position <= self._num_rows):
            raise ValueError(
                f"{state} cannot be restored over {self._num_rows} rows: resume with the original data set"
            )
        self._epoch, self._position = state.epoch, state.position
        self._order = self._shuffled()

    def _next(self) -> SampleRef:
        if self._position == self._num_rows:
            self._epoch, self._position = self._epoch + 1, 0
            self._order = self._shuffled()
        row = int(self._order[self._position])
        self._position += 1
        return SampleRef(dataset=self._dataset, row=row, uid=f"{self._epoch}-{row}")

    def _shuffled(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        # NumPy accepts no negative seeds, so the sign is a separate word.
        words = [abs(self._seed), self._epoch, int(self._seed < 0)]
        return np.random.default_rng(words).permutation(self._num_rows)


@dataclass(kw_only=True)
class SkipLedger:
    """Records unusable rows, and stops a run that has too many. Pure."""

    max_skipped_fraction: float
    """Of the rows read."""
    skipped: list[tuple[SampleRef, str]] = field(default_factory=list)
    """In order of occurrence, with the reason."""
    num_usable: int = 0
    """Rows read that could be used."""

    @property
    def num_read(self) -> int:
        """Rows read so far, usable or not."""
        return self.num_usable + len(self.skipped)

    def count_read(self) -> None:
        """Count a row that could be used."""
        self.num_usable += 1

    def add(self, ref: SampleRef, reason: str) -> None:
        """Count an unusable row.

        Raises:
            DataError: at least `MIN_SKIPPED` rows and more than the allowed share were unusable.
        """
        self.skipped.append((ref, reason))
        count = len(self.skipped)
        if count >= MIN_SKIPPED and count > self.max_skipped_fraction * self.num_read:
            last = "; ".join(_named(skipped, why) for skipped, why in self.skipped[-NUM_REASONS_SHOWN:])
            raise DataError(
                f"{count} of the {self.num_read} rows of {ref.dataset} read so far were unusable, over "
                f"data.max_skipped_fraction={self.max_skipped_fraction}; the last ones: {last}"
            )


def _named(ref: SampleRef, reason: str) -> str:
    """The reason, prefixed by the row unless `Dataset.read` has named it already."""
    row = f"row {ref.row}"
    return reason if reason.startswith(f"{row} ") else f"{row}: {reason}"
