"""Samples of a data set, the order in which they are drawn, and the account of those that could not be used.

Columns are those of the published VisionThink sets: `problem`, `images` or `image`, `original_answer` or `answer`,
and, where there is one, `info` with `use_tool`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from actors.data.tables import Rows, open_rows
from actors.episode import Sample, SampleRef
from actors.errors import DataError
from configs.schema import DataConfig

QUESTION = ("problem",)
IMAGE = ("images", "image")
ANSWER = ("original_answer", "answer")
"""Names that a column may have; the first one found counts."""
NOTES = "info"
IMAGE_MARK = "<image>"
"""Where the published questions have their picture. Ours goes where the prompt puts it."""
MIN_SKIPPED = 10
"""Skipped rows from which on their share is looked at."""
NUM_REASONS_SHOWN = 3
"""Of the newest skipped rows, where they stop a run."""
DEFAULT_FOLDER = Path(DataConfig().train).parent.as_posix()
"""Where the data set lies that `visionthink data make` writes."""


class Dataset:
    """Rows read one at a time. Pictures stay encoded: `actors.images` decodes them."""

    def __init__(self, path: str, rows: Rows) -> None:
        self._path = path
        self._rows = rows
        found = rows.column_names
        self._question, self._image, self._answer = (_column(path, found, names) for names in (QUESTION, IMAGE, ANSWER))
        self._columns = [self._question, self._image, self._answer, *([NOTES] if NOTES in found else [])]

    @classmethod
    def open(cls, path: str) -> Self:
        """Open a Parquet file, a folder of them, or a Hugging Face `save_to_disk` folder.

        Raises:
            DataError: nothing readable there, no rows, or a column is missing.
        """
        if DEFAULT_FOLDER in Path(path).as_posix() and not Path(path).exists():
            raise DataError(f"{path} does not exist: make it with `visionthink data make`")
        rows = open_rows(path)
        if not len(rows):
            raise DataError(f"{path} has no rows")
        return cls(path, rows)

    def __len__(self) -> int:
        return len(self._rows)

    def identity(self) -> str:
        """Short hash of file names, sizes, number of rows and columns: a resumed run must find the same."""
        return self._rows.identity()

    def read(self, ref: SampleRef) -> Sample:
        """The sample at `ref.row`; DataError with the reason when the row is unusable."""
        values = self._rows.read(ref.row, self._columns)
        where = f"row {ref.row} of {self._path}"
        return Sample(
            ref=ref,
            question=_text(values[self._question], f"{where}: {self._question}").replace(IMAGE_MARK, "").strip(),
            answer=_text(values[self._answer], f"{where}: {self._answer}"),
            image=_one_image(values[self._image], f"{where}: {self._image}"),
            needs_full=_needs_full(values.get(NOTES)),
        )


def _column(path: str, found: list[str], names: tuple[str, ...]) -> str:
    present = [name for name in names if name in found]
    if not present:
        raise DataError(f"{path} has no column {' or '.join(names)}: its columns are {', '.join(found) or 'none'}")
    return present[0]


def _text(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{where} is {type(value).__name__}, not a text or a number")
    text = str(value).strip()
    if not text:
        raise DataError(f"{where} is empty")
    return text


def _one_image(value: Any, where: str) -> bytes:
    """Encoded bytes from any of the forms in use: bytes, {bytes, path}, or a list of one of these."""
    if isinstance(value, list):
        if len(value) != 1:
            raise DataError(f"{where} has {len(value)} pictures: an episode shows exactly 1")
        value = value[0]
    if isinstance(value, dict):
        encoded = value.get("bytes")
        if encoded is None and value.get("path"):
            raise DataError(f"{where} names a file instead of holding its bytes: embed the pictures")
        value = encoded
    if not isinstance(value, bytes) or not value:
        raise DataError(f"{where} holds no picture")
    return value


def _needs_full(notes: Any) -> bool | None:
    """`use_tool` of the `info` column, a struct or JSON; None where the data set does not say."""
    if isinstance(notes, str):
        try:
            notes = json.loads(notes)
        except (ValueError, RecursionError):
            return None
    use_tool = notes.get("use_tool") if isinstance(notes, dict) else None
    return use_tool if isinstance(use_tool, bool) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CursorState:
    """All that is needed to go on drawing where a run stopped."""

    seed: int
    epoch: int
    position: int
    """Rows of the epoch already drawn."""


class PromptCursor:
    """Draws every row once per epoch, each epoch in an order of its own that the seed decides. Pure."""

    def __init__(self, *, dataset: str, num_rows: int, seed: int) -> None:
        if num_rows < 1:
            raise ValueError(f"num_rows={num_rows} cannot work: there is nothing to draw from")
        self._dataset = dataset
        self._num_rows = num_rows
        self._seed = seed
        self.restore(CursorState(seed=seed, epoch=0, position=0))

    def take(self, num_prompts: int) -> list[SampleRef]:
        """The next rows, going on into the next epoch where this one ends."""
        return [self._next() for _ in range(num_prompts)]

    @property
    def num_taken(self) -> int:
        """Rows drawn since the first epoch began."""
        return self._epoch * self._num_rows + self._position

    def state(self) -> CursorState:
        return CursorState(seed=self._seed, epoch=self._epoch, position=self._position)

    def restore(self, state: CursorState) -> None:
        """Go on from a state of a cursor with the same seed over the same data set; ValueError when it is not one."""
        if state.seed != self._seed:
            raise ValueError(f"{state} cannot be restored under run.seed={self._seed}: resume with the seed it had")
        if not (state.epoch >= 0 and 0 <= state.position <= self._num_rows):
            raise ValueError(f"{state} cannot be restored over {self._num_rows} rows: resume with the data set it had")
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
        # NumPy takes no negative number: the sign is a word of its own, which leaves the others' order as it was.
        words = [abs(self._seed), self._epoch, int(self._seed < 0)]
        return np.random.default_rng(words).permutation(self._num_rows)


@dataclass(kw_only=True)
class SkipLedger:
    """Names the rows that could not be used, and stops a run that loses too many. Pure."""

    max_skipped_fraction: float
    """Of the rows read."""
    skipped: list[tuple[SampleRef, str]] = field(default_factory=list)
    """In the order in which they were met, with the reason."""
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
    """The reason after its row: `Dataset.read` has named the row already, the picture's decoder has not."""
    row = f"row {ref.row}"
    return reason if reason.startswith(f"{row} ") else f"{row}: {reason}"
