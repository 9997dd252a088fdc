"""MathVista: the final answer is extracted, brought into the form that the problem wants, and compared as text.

Source: Lu et al., ICLR 2024 (arXiv 2310.02255); lupantech/MathVista `evaluation/extract_answer.py` and
`evaluation/calculate_score.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from actors.data.benchmarks.row import BenchmarkRow

MULTI_CHOICE = "multi_choice"


def plain_answer(answer: str, row: BenchmarkRow) -> str | None:
    """The answer where it needs no extraction: a choice, its letter alone, or a number; None where it does."""
    if row.question_type == MULTI_CHOICE:
        if answer in row.choices:
            return answer
        if letter := re.fullmatch(r"\(?([A-Z])\)?\.?", answer):
            return letter[1]
    try:
        if row.answer_type == "integer":
            return str(int(answer))
        if row.answer_type == "float":
            return str(float(answer))
    except ValueError:
        pass
    return None


def wanted_form(row: BenchmarkRow) -> str:
    """The form of the answer, for whoever extracts it."""
    if row.question_type == MULTI_CHOICE:
        options = "\n".join(f"({chr(65 + at)}) {choice}" for at, choice in enumerate(row.choices))
        return f"the letter of one of these options:\n{options}"
    decimals = f"a number with {row.precision or 1} decimal places"
    return {"integer": "a whole number", "float": decimals, "list": "a list such as [1, 2, 3]"}.get(
        row.answer_type, "the value alone"
    )


def normalized(extracted: str, row: BenchmarkRow) -> str | None:
    """The extracted answer in the form of the problem; None where it has no such form.

    `(B) 8/11` and `B` are the second choice, any other text the choice that is nearest to it. `14.9` is the integer 14,
    `1.25` with one decimal 1.2; `1,000`, `5 cm` and `12%` are no numbers.
    """
    if row.question_type == MULTI_CHOICE:
        return _choice(extracted.strip(), row.choices)
    try:
        if row.answer_type == "integer":
            return str(int(float(extracted)))
        if row.answer_type == "float":
            return str(round(float(extracted), row.precision))
    except (ValueError, OverflowError):  # no number, or an infinite one
        return None
    return extracted


def is_right(extracted: str, row: BenchmarkRow) -> bool:
    found = normalized(extracted, row)
    return found is not None and found.strip() == row.references[0].strip()


def _choice(extracted: str, choices: Sequence[str]) -> str | None:
    if not choices:
        return None
    letters = re.findall(r"\(([a-zA-Z])\)", extracted)
    letter = letters[0].upper() if letters else extracted
    if len(letter) == 1 and 0 <= ord(letter) - 65 < len(choices):
        return choices[ord(letter) - 65]
    return min(choices, key=lambda choice: Levenshtein.distance(letter, choice))
