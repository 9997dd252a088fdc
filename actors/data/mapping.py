"""Reads question, image and answer from sets of another layout: paths into columns, and texts with such paths.

    conversations.0.value          a field of an entry; steps into text read it as JSON
    answers.*.answer               of every entry
    {question}\\n{choices}          a text; a list in it is written as options: A. red, B. blue, one a line
    {answer|letter}                the option's letter for its index (2 or "2" is C)
    {answers|most}                 the most frequent of several

Several answers become a JSON array, which `judge.metric=anls` reads. Pure: knows schemas and values, opens no files.
"""

from __future__ import annotations

import ast
import json
import re
import string
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import pyarrow as pa

from actors.data.arrow_types import is_text, plain_type, without_list
from actors.data.texts import TextColumn
from actors.errors import DataError

EVERY = "*"
_PLACE = re.compile(r"\{([^{}|]+)(?:\|([^{}]*))?\}")
FILTERS = ("letter", "most")


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnPath:
    """Where a value is in a row."""

    text: str
    """As written in the settings."""
    column: str
    steps: tuple[str, ...]

    @classmethod
    def of(cls, setting: str, text: str, schema: pa.Schema) -> Self:
        """For a setting such as `data.columns.answer`. A column whose name has dots is preferred to a path.

        Raises:
            DataError: the schema has no such column.
        """
        parts = text.strip().split(".")
        for length in range(len(parts), 0, -1):
            if (column := ".".join(parts[:length])) in schema.names:
                return cls(text=text.strip(), column=column, steps=tuple(parts[length:]))
        raise DataError(f"{setting}={text!r}: there is no column {parts[0]}; the columns are {', '.join(schema.names)}")

    def type_in(self, setting: str, schema: pa.Schema) -> pa.DataType:
        """Type of the values at this path; text where the path goes on inside JSON.

        Raises:
            DataError: the column's type has no such place.
        """
        kind = plain_type(schema.field(self.column).type)
        for step in self.steps:
            item, is_list = without_list(kind)
            if is_list and (step == EVERY or step.isdigit()):
                kind = item
            elif pa.types.is_struct(kind) and kind.get_field_index(step) >= 0:
                kind = plain_type(kind.field(step).type)
            elif is_text(kind):
                return pa.string()
            else:
                raise DataError(f"{setting}={self.text!r}: there is no {step!r} in {kind}")
        return kind

    def find(self, value: Any) -> Any:
        """The value at this path in a value of the column; DataError where the row has no such place."""
        return _walk(value, self.steps, self.text)


def _walk(value: Any, steps: tuple[str, ...], path: str) -> Any:
    for index, step in enumerate(steps):
        if isinstance(value, str):
            value = _parsed(value, path)
        if step == EVERY and isinstance(value, list):
            return [_walk(item, steps[index + 1 :], path) for item in value]
        try:
            value = value[int(step)] if isinstance(value, list) else value[step]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise DataError(f"{path} has no {step!r} in this row") from error
    return value


def _parsed(text: str, path: str) -> Any:
    """The value that a text holds as JSON or as a Python literal, both of which public sets have."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise DataError(f"{path}: {text[:40]!r} is not JSON") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One value in a text."""

    path: ColumnPath
    leaf: TextColumn
    """Writes one value as text."""
    form: str
    """A filter, or empty."""

    def texts(self, row: Mapping[str, Any]) -> list[str]:
        """All values there; DataError with the reason if there are none."""
        value = self.path.find(row[self.path.column])
        if not isinstance(value, list):
            return [self.leaf.read(value)]
        if not value:
            raise DataError(f"{self.path.text} is an empty list")
        return [self.leaf.read(item) for item in value]


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedText:
    """A question or an answer made from places of a row. Reads like a `TextColumn`, but from the whole row."""

    name: str
    """The setting."""
    literals: tuple[str, ...]
    """The text between the places, one more than these."""
    places: tuple[Place, ...]
    is_list: bool = False
    form: Literal["text"] = "text"

    @classmethod
    def of(cls, setting: str, text: str, schema: pa.Schema) -> Self:
        """For a path, or a text with paths in braces.

        Raises:
            DataError: a path leads nowhere or to no text, or a filter is unknown.
        """
        pieces: list[Any] = _PLACE.split(text) if "{" in text else ["", text, None, ""]
        if len(pieces) == 1:
            raise DataError(f"{setting}={text!r}: there is no column in it; write one in braces, as in {{question}}")
        literals = tuple(piece.replace("\\n", "\n") for piece in pieces[::3])
        found = zip(pieces[1::3], pieces[2::3], strict=True)
        return cls(name=setting, literals=literals, places=tuple(_place(setting, *one, schema) for one in found))

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(place.path.column for place in self.places)

    def read(self, row: Mapping[str, Any]) -> str:
        """The text; DataError with the reason when a part of it is missing."""
        is_bare = self.literals == ("", "") and not self.places[0].form
        if is_bare:
            texts = list(dict.fromkeys(self.places[0].texts(row)))
            return texts[0] if len(texts) == 1 else json.dumps(texts, ensure_ascii=False)
        filled = [_written(place, place.texts(row)) for place in self.places]
        ends = [literal + text for literal, text in zip(self.literals, filled, strict=False)]
        return "".join([*ends, self.literals[-1]]).strip()


def _place(setting: str, text: str, form: str | None, schema: pa.Schema) -> Place:
    if form is not None and form not in FILTERS:
        raise DataError(f"{setting}: there is no filter {form!r}; give {' or '.join(FILTERS)}")
    path = ColumnPath.of(setting, text, schema)
    kind, _ = without_list(path.type_in(setting, schema))
    # A ClassLabel's names are found by the column's name, with which the metadata list it.
    named = path.column if not path.steps else path.text
    leaf = TextColumn.of(pa.schema([(named, kind)], metadata=schema.metadata), named)
    return Place(path=path, leaf=leaf, form=form or "")


def _written(place: Place, texts: list[str]) -> str:
    if place.form == "most":
        return Counter(texts).most_common(1)[0][0]
    if place.form == "letter":
        return ", ".join(_letter(text) for text in texts)
    if len(texts) == 1:
        return texts[0]
    return "\n".join(f"{_letter(str(index))}. {text}" for index, text in enumerate(texts))


def _letter(text: str) -> str:
    """The letter of an option's index; a text that is no index stays."""
    is_index = re.fullmatch("[0-9]{1,2}", text) is not None and int(text) < len(string.ascii_uppercase)
    return string.ascii_uppercase[int(text)] if is_index else text
