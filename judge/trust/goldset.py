"""Rows whose verdict people have settled: the gold set, and the attacks that must never pass.

Both are JSON lines with the same columns, written for this project: `gold/gold.jsonl` and `gold/attacks.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from actors.errors import DataError

FOLDER = Path(__file__).resolve().parent / "gold"
GOLD_FILE = FOLDER / "gold.jsonl"
ATTACKS_FILE = FOLDER / "attacks.jsonl"
MAX_FILE_BYTES = 256 * 2**20
"""A larger file is refused unread: rows are held in memory."""

_REQUIRED: Mapping[str, type] = {"question": str, "reference": str, "prediction": str, "verdict": int, "kind": str}
_OPTIONAL: Mapping[str, type] = {"decidable_by_rules": bool}


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldRow:
    """One prediction and whether it is right."""

    question: str
    reference: str
    prediction: str
    is_correct: bool
    kind: str
    """What the row tries, such as `units` or `fake verdict`."""
    is_decidable_by_rules: bool
    """Whether writing alone settles it: no synonym, no knowledge of the world. True where the file does not say."""


def read_gold(path: Path) -> tuple[GoldRow, ...]:
    """Rows of a JSON-lines file with the columns `question, reference, prediction, verdict (0 or 1), kind` and,
    optionally, `decidable_by_rules`.

    Raises:
        DataError: no such file, no row, or a row that is not of these columns; names file, line and field.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{path} is larger than {MAX_FILE_BYTES} bytes: split it")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    # Only a line feed ends a row: `splitlines` would also cut at separators that may stand raw inside a JSON string.
    rows = tuple(
        _read_row(line, f"{path}, line {number}") for number, line in enumerate(text.split("\n"), 1) if line.strip()
    )
    if not rows:
        raise DataError(f"{path} holds no row")
    return rows


def _read_row(line: str, where: str) -> GoldRow:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: an object is wanted, not {type(row).__name__}")
    if unknown := sorted(row.keys() - _REQUIRED.keys() - _OPTIONAL.keys()):
        raise DataError(f"{where}: unknown field {unknown[0]!r}")
    if missing := [name for name in _REQUIRED if name not in row]:
        raise DataError(f"{where}: field {missing[0]!r} is missing")
    for name, value in row.items():
        wanted = {**_REQUIRED, **_OPTIONAL}[name]
        if type(value) is not wanted:
            raise DataError(f"{where}: field {name!r} is {type(value).__name__}, not {wanted.__name__}")
    if row["verdict"] not in (0, 1):
        raise DataError(f"{where}: field 'verdict' is {row['verdict']}, not 0 or 1")
    for name in ("reference", "kind"):
        if not row[name].strip():
            raise DataError(f"{where}: field {name!r} is empty")
    return GoldRow(
        question=row["question"],
        reference=row["reference"],
        prediction=row["prediction"],
        is_correct=row["verdict"] == 1,
        kind=row["kind"],
        is_decidable_by_rules=row.get("decidable_by_rules", True),
    )
