"""Determines the columns of question, image and answer, and how each file is read. Opens no files.

Columns are those of the published VisionThink sets: `problem`, `images` or `image`, `original_answer` or `answer`,
and, where there is one, `info` with `use_tool`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from actors.data.arrow_types import duplicates
from actors.data.pictures import PictureColumn
from actors.data.texts import TextColumn
from actors.errors import DataError

QUESTION = ("problem",)
IMAGE = ("images", "image")
ANSWER = ("original_answer", "answer")
"""Accepted column names; the first one that every file has is used."""
NOTES = "info"
Schemas = Mapping[int, tuple[str, pa.Schema]]
"""Name and schema of each file, by its number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """How the rows of one file are read."""

    question: TextColumn
    image: PictureColumn
    answer: TextColumn
    has_notes: bool

    @property
    def names(self) -> tuple[str, ...]:
        return (self.question.name, self.image.name, self.answer.name, *((NOTES,) if self.has_notes else ()))

    @property
    def forms(self) -> dict[str, tuple[str, bool]]:
        """What must be equal in all files of a data set. Number and text types may differ."""
        columns = (self.question, self.image, self.answer)
        return {column.name: (column.form, column.is_list) for column in columns if column.form != "missing"}


def columns_of_files(path: str, schemas: Schemas, folder: Path) -> dict[int, Columns]:
    """The columns of each file of the data set at `path`, whose images may be in `folder`.

    Raises:
        DataError: a column is missing, duplicated, of an unsupported type, or of different kinds in two files.
    """
    for file, schema in schemas.values():
        _reject_duplicates(file if len(schemas) > 1 else path, schema)
    question, image, answer = (_column(path, schemas, names) for names in (QUESTION, IMAGE, ANSWER))
    has_notes = all(NOTES in schema.names for _, schema in schemas.values())
    columns = {}
    for number, (file, schema) in schemas.items():
        try:
            columns[number] = Columns(
                question=TextColumn.of(schema, question),
                image=PictureColumn.of(schema, image, folder),
                answer=TextColumn.of(schema, answer),
                has_notes=has_notes,
            )
        except DataError as error:
            raise DataError(f"{path}: {error}" if len(schemas) == 1 else f"{path}: in {file}, {error}") from error
    _check_alike(path, schemas, columns)
    return columns


def _column(path: str, schemas: Schemas, names: Sequence[str]) -> str:
    """The first of these names that every file has."""
    for name in names:
        if all(name in schema.names for _, schema in schemas.values()):
            return name
    wanted = " or ".join(names)
    having = {file: any(name in schema.names for name in names) for file, schema in schemas.values()}
    if not any(having.values()):
        found = ", ".join(next(iter(schemas.values()))[1].names) or "none"
        raise DataError(f"{path} has no column {wanted}: its columns are {found}; rename the intended one")
    found = "; ".join(f"{file} has {', '.join(schema.names)}" for file, schema in _two_unlike(schemas, names))
    raise DataError(f"{path} has no column {wanted} that all of its files share ({found}): give them the same columns")


def _two_unlike(schemas: Schemas, names: Sequence[str]) -> list[tuple[str, pa.Schema]]:
    """Two files that differ in these columns."""
    by_columns = {tuple(name in schema.names for name in names): (file, schema) for file, schema in schemas.values()}
    return list(by_columns.values())[:2]


def _reject_duplicates(where: str, schema: pa.Schema) -> None:
    if twice := duplicates(schema.names):
        raise DataError(f"{where} has the column {twice[0]} twice: rename or drop one of them")
    notes = schema.field(NOTES).type if NOTES in schema.names else pa.null()
    fields = [notes.field(index).name for index in range(notes.num_fields)] if pa.types.is_struct(notes) else []
    if twice := duplicates(fields):
        raise DataError(f"{where}: {NOTES} has the field {twice[0]} twice: rename or drop one of them")


def _check_alike(path: str, schemas: Schemas, columns: Mapping[int, Columns]) -> None:
    """Reject a column without any value, and files whose columns have to be read differently."""
    seen: dict[str, tuple[int, tuple[str, bool]]] = {}
    for number, one in columns.items():
        for name, form in one.forms.items():
            first, expected = seen.setdefault(name, (number, form))
            if form != expected:
                differing = (schemas[first], schemas[number])
                types = " and ".join(f"{schema.field(name).type} in {file}" for file, schema in differing)
                raise DataError(f"{path}: {name} is {types}: write all files with one schema")
    one = next(iter(columns.values()))
    for column in (one.question, one.image, one.answer):
        if column.name not in seen:
            raise DataError(f"{path}: {column.name} has no value in any row: fill it, or rename the intended column")
