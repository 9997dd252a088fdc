"""Reads questions and answers as text from columns of any supported type."""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa

from actors.data.arrow_types import is_bytes, is_text, without_list
from actors.errors import DataError

SCIENTIFIC_FROM, SCIENTIFIC_BELOW = 1e16, 1e-6
"""Magnitudes of floats that are written with an exponent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextColumn:
    """How the values of a column are turned into text."""

    name: str
    form: Literal["text", "label", "missing"]
    """`label`: numbers that stand for names (ClassLabel of Hugging Face). `missing`: no row has a value."""
    is_list: bool
    float_type: type[np.floating[Any]] | None
    """Stored float type, which determines the shortest decimal representation."""
    labels: tuple[str, ...] = ()

    @classmethod
    def of(cls, schema: pa.Schema, name: str) -> Self:
        """For a column of a file.

        Raises:
            DataError: values of its type are no texts or numbers.
        """
        field = schema.field(name)
        kind, is_list = without_list(field.type)
        labels = _labels(schema, name) if pa.types.is_integer(kind) else ()
        is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        if pa.types.is_boolean(kind):
            raise DataError(
                f"{name} is {field.type}: write it as text in the words of the question, such as yes and no"
            )
        if not (is_number or is_text(kind) or is_bytes(kind) or pa.types.is_null(kind)):
            raise DataError(f"{name} is {field.type}: it must be a text or a number, write it as text")
        return cls(
            name=name,
            form="missing" if pa.types.is_null(kind) else "label" if labels else "text",
            is_list=is_list,
            float_type=kind.to_pandas_dtype() if pa.types.is_floating(kind) else None,
            labels=labels,
        )

    def read(self, value: Any) -> str:
        """The text of a value, never empty; DataError with the reason when it has none."""
        try:
            return self._read(value)
        except DataError as error:
            raise DataError(f"{self.name} {error}") from error

    def _read(self, value: Any) -> str:
        if self.is_list and value is not None:
            if len(value) != 1:
                raise DataError(f"holds {len(value)} values: give one, several only as a JSON array in a text")
            value = value[0]
        text = value if isinstance(value, str) else self._written(value)
        text = text.strip()
        if is_blank(text):
            raise DataError("is empty")
        if any("\ud800" <= char <= "\udfff" for char in text):  # JSON can hold half of a character
            raise DataError("has a lone surrogate, which is no character: write the text anew")
        return text

    def _written(self, value: Any) -> str:
        match value:
            case None:
                raise DataError("is null")
            case bool():
                raise DataError(f"is {value}: write it as text in the words of the question, such as yes and no")
            case float():
                return _float_text(value, self.float_type or np.float64)
            case Decimal():
                digits = format(value, "f")
                return digits.rstrip("0").rstrip(".") if "." in digits else digits
            case int():
                return self._label(value) if self.labels else str(value)
            case bytes():
                try:
                    return value.decode()
                except UnicodeDecodeError as error:
                    raise DataError(f"is not UTF-8: {error}") from error
        raise DataError(f"is a {type(value).__name__}, not a text or a number: give the path to one of its values")

    def _label(self, value: int) -> str:
        if not 0 <= value < len(self.labels):
            raise DataError(f"is label {value}, which has no name")
        return self.labels[value]


def is_blank(text: str) -> bool:
    """Whether a stripped text is empty or has only zero-width and control characters."""
    return not any(map(str.isprintable, text))


def _float_text(value: float, float_type: type[np.floating[Any]]) -> str:
    """Shortest decimal representation of a float of that type; whole numbers without a decimal point.

    Raises:
        DataError: not a finite number, or a whole one with more digits than a float of the width keeps.
    """
    if not np.isfinite(value):
        raise DataError(f"is {value}, not a number that can be an answer")
    number = float_type(value + 0.0)  # no negative zero
    digits, _, _ = np.format_float_scientific(number, trim="-").lstrip("-").partition("e")
    exact_up_to = 2 ** (np.finfo(float_type).nmant + 1)
    if abs(value) >= exact_up_to and len(digits.replace(".", "")) > np.finfo(float_type).precision:
        raise DataError(
            f"is {value:.0f}: from {exact_up_to} on, {float_type.__name__} does not keep every whole number; store the "
            "column as integers or as text"
        )
    if value and not SCIENTIFIC_BELOW <= abs(value) < SCIENTIFIC_FROM:
        return np.format_float_scientific(number, trim="-")
    return np.format_float_positional(number, trim="-")


def _labels(schema: pa.Schema, name: str) -> tuple[str, ...]:
    """Names of a ClassLabel column, from the features that Hugging Face's `datasets` leaves in a schema."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][name]
        while feature.get("_type") in ("Sequence", "List", "LargeList"):
            feature = feature["feature"]
        return tuple(map(str, feature["names"])) if feature["_type"] == "ClassLabel" else ()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ()
