"""Rows with human verdicts: the gold set, and attacks that must never pass."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.errors import DataError
from judge.verdict import JudgeRequest

FOLDER = Path(__file__).resolve().parent / "gold"
GOLD_FILE = FOLDER / "gold.jsonl"
ATTACKS_FILE = FOLDER / "attacks.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldRow:
    """One prediction and whether it is correct."""

    question: str
    reference: str
    prediction: str
    is_correct: bool
    kind: str
    """What the row tests, such as `units` or `fake verdict`; `row` where the file does not say."""

    @property
    def request(self) -> JudgeRequest:
        """The row as a group of one answer."""
        return JudgeRequest(question=self.question, reference=self.reference, predictions=(self.prediction,))


def read_gold(path: Path) -> tuple[GoldRow, ...]:
    """Rows of JSON lines with the columns `question, reference, prediction, verdict` (1 is right) and perhaps `kind`.

    Raises:
        DataError: no such file, no row, or a row without these columns; names file, line and column.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    # Only a line feed ends a row: `splitlines` would also split at separators that may occur inside a JSON string.
    lines = enumerate(text.split("\n"), 1)
    rows = tuple(_read_row(line, f"{path}, line {number}") for number, line in lines if line.strip())
    if not rows:
        raise DataError(f"{path} has no row")
    return rows


def _read_row(line: str, where: str) -> GoldRow:
    try:
        row = dict(json.loads(line))
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{where}: not a JSON object: {error}") from error
    texts: dict[str, Any] = {name: row.get(name) for name in ("question", "reference", "prediction")}
    texts["kind"] = row.get("kind", "row")
    for name, text in texts.items():
        if not isinstance(text, str) or (name == "reference" and not text.strip()):
            raise DataError(f"{where}: column {name!r} is {text!r}: must be a string, the reference not empty")
    if row.get("verdict") not in (0, 1):
        raise DataError(f"{where}: column 'verdict' is {row.get('verdict')!r}: must be 1 (right) or 0 (wrong)")
    return GoldRow(is_correct=row["verdict"] == 1, **texts)
