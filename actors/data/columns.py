"""Determines the columns of question, image and answer, and how each file is read. Opens no files.

Columns are those of the published VisionThink sets: `problem`, `images` or `image`, `original_answer` or `answer`,
and, where there is one, `info` with `use_tool`, and with `needs` and `region` as the crop task has them; or what
`data.columns` says of another layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.data.arrow_types import duplicates
from actors.data.mapping import ColumnPath, MappedText
from actors.data.pictures import PictureColumn
from actors.data.texts import TextColumn
from actors.errors import DataError
from actors.needs import NEEDS, Need, Region
from configs.schema import ColumnsConfig

QUESTION = ("problem",)
IMAGE = ("images", "image")
ANSWER = ("original_answer", "answer")
"""Accepted column names; the first one that every file has is used."""
NOTES = "info"
PUBLISHED = ColumnsConfig()
WRITTEN_HERE = {b"visionthink.columns": b"published"}
"""In the metadata of a schema."""
Schemas = Mapping[int, tuple[str, pa.Schema]]
"""Name and schema of each file, by its number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """How the rows of one file are read."""

    question: TextColumn | MappedText
    image: PictureColumn
    image_path: ColumnPath
    answer: TextColumn | MappedText
    needs_full: ColumnPath | None
    """None where the set does not say, as for the next two."""
    needs: ColumnPath | None
    region: ColumnPath | None

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that are read."""
        texts = (one.columns if isinstance(one, MappedText) else (one.name,) for one in (self.question, self.answer))
        notes = (path.column for path in (self.needs_full, self.needs, self.region) if path)
        return tuple(dict.fromkeys([*(name for names in texts for name in names), self.image_path.column, *notes]))

    @property
    def forms(self) -> dict[str, tuple[str, bool]]:
        """What must be equal in all files of a data set. Number and text types may differ."""
        columns = (self.question, self.image, self.answer)
        return {column.name: (column.form, column.is_list) for column in columns if column.form != "missing"}

    def read_image(self, row: Mapping[str, Any]) -> bytes:
        """The encoded image; DataError with the reason if there is none."""
        return self.image.read(self.image_path.find(row[self.image_path.column]))

    def has_text_for_image(self, row: Mapping[str, Any]) -> bool:
        """Whether the row has a text, such as a path, instead of the image's bytes."""
        try:
            return self.image.is_text(self.image_path.find(row[self.image_path.column]))
        except DataError:
            return False

    def read_needs_full(self, row: Mapping[str, Any]) -> bool | None:
        """Whether the full view is needed; None where the row does not say."""
        found = _found(self.needs_full, row)
        return found if isinstance(found, bool) else None

    def read_needs(self, row: Mapping[str, Any]) -> Need | None:
        """The least that must be seen; None where the row does not say, or says something else."""
        found = _found(self.needs, row)
        return next((need for need in NEEDS if need == found), None)

    def read_region(self, row: Mapping[str, Any]) -> Region | None:
        """The region that must be seen; None where the row has none inside the picture."""
        match _found(self.region, row):
            case [float() | int() as left, float() | int() as top, float() | int() as right, float() | int() as bottom]:
                is_inside = 0 <= left < right <= 1 and 0 <= top < bottom <= 1
                return (left, top, right, bottom) if is_inside else None
        return None


def _found(path: ColumnPath | None, row: Mapping[str, Any]) -> Any:
    """The value at a path; None where there is none."""
    try:
        return path.find(row[path.column]) if path else None
    except DataError:
        return None


def read_text(column: TextColumn | MappedText, row: Mapping[str, Any]) -> str:
    """A question or an answer; DataError with the reason when the row has none."""
    return column.read(row) if isinstance(column, MappedText) else column.read(row[column.name])


def columns_of_files(
    path: str, schemas: Schemas, folder: Path, mapping: ColumnsConfig = PUBLISHED
) -> dict[int, Columns]:
    """The columns of each file of the data set at `path`, whose images may be in `folder`.

    A set that this project wrote says so, and is read by the published columns whatever the mapping.

    Raises:
        DataError: a column is missing, duplicated, of an unsupported type, or of different kinds in two files.
    """
    for file, schema in schemas.values():
        _reject_duplicates(file if len(schemas) > 1 else path, schema)
    if all(WRITTEN_HERE.items() <= (schema.metadata or {}).items() for _, schema in schemas.values()):
        mapping = PUBLISHED
    question = mapping.question or _column(path, schemas, QUESTION)
    image = mapping.image or _column(path, schemas, IMAGE)
    answer = mapping.answer or _column(path, schemas, ANSWER)
    has_notes = all(NOTES in schema.names for _, schema in schemas.values())
    notes = {
        name: getattr(mapping, name) or (f"{NOTES}.{place}" if has_notes else "")
        for name, place in (("needs_full", "use_tool"), ("needs", "needs"), ("region", "region"))
    }
    columns = {}
    for number, (file, schema) in schemas.items():
        try:
            image_path = ColumnPath.of("data.columns.image", image, schema)
            kind = image_path.type_in("data.columns.image", schema)
            columns[number] = Columns(
                question=_text_column("question", mapping.question, question, schema),
                image=PictureColumn.of(pa.schema([(image_path.text, kind)]), image_path.text, folder),
                image_path=image_path,
                answer=_text_column("answer", mapping.answer, answer, schema),
                **{
                    name: ColumnPath.of(f"data.columns.{name}", text, schema) if text else None
                    for name, text in notes.items()
                },
            )
        except DataError as error:
            raise DataError(f"{path}: {error}" if len(schemas) == 1 else f"{path}: in {file}, {error}") from error
    _check_alike(path, schemas, columns)
    return columns


def _text_column(what: str, mapped: str, name: str, schema: pa.Schema) -> TextColumn | MappedText:
    return MappedText.of(f"data.columns.{what}", mapped, schema) if mapped else TextColumn.of(schema, name)


def _column(path: str, schemas: Schemas, names: Sequence[str]) -> str:
    """The first of these names that every file has."""
    for name in names:
        if all(name in schema.names for _, schema in schemas.values()):
            return name
    wanted = " or ".join(names)
    having = {file: any(name in schema.names for name in names) for file, schema in schemas.values()}
    if not any(having.values()):
        found = ", ".join(next(iter(schemas.values()))[1].names) or "none"
        raise DataError(
            f"{path} has no column {wanted}: its columns are {found}; rename one, or name it in data.columns"
        )
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
                types = " and ".join(f"{_type_of(schema, name)} in {file}" for file, schema in differing)
                raise DataError(f"{path}: {name} is {types}: write all files with one schema")
    one = next(iter(columns.values()))
    for column in (one.question, one.image, one.answer):
        if column.name not in seen:
            raise DataError(f"{path}: {column.name} has no value in any row: fill it, or rename the intended column")


def _type_of(schema: pa.Schema, name: str) -> pa.DataType:
    return ColumnPath.of(name, name, schema).type_in(name, schema)
