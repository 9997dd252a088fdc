"""Ordinal numbers: `19th century`, `the nineteenth century`, `3rd`."""

from __future__ import annotations

import re

from judge.rules.asked import Asked
from judge.rules.findings import Finding, Rule
from judge.rules.normalise import normalise
from judge.rules.quantity import parse_quantity

_ONES = "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth"
_WORDS = {
    word: value for value, word in enumerate(f"{_ONES} fifteenth sixteenth seventeenth eighteenth nineteenth".split())
}
_WORDS |= {"twentieth": 20, "thirtieth": 30, "fortieth": 40, "fiftieth": 50, "hundredth": 100}
_TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50}
_RANK = re.compile(r"(?:(?P<digits>\d{1,4})(?:st|nd|rd|th)|(?:(?P<tens>[a-z]+) )?(?P<word>[a-z]+))(?: (?P<rest>.+))?")


def compare_ranks(reference: str, prediction: str, asked: Asked) -> Finding | None:
    """Compare two texts that begin with a rank and go on alike; None where they do not.

    `third` against `3` is open: it may be the third of a row or the number three. It is taken for right unless the
    question asks how many.
    """
    expected, given = _read(reference), _read(prediction)
    if expected and given:
        if expected[1] != given[1]:
            return None
        is_same = expected[0] == given[0]
        return Finding(is_correct=is_same, rule=Rule.ORDINAL, detail="same" if is_same else "different")
    number, rank = (parse_quantity(reference), given) if given else (parse_quantity(prediction), expected)
    if not rank or rank[1] or number is None or number.unit is not None or asked.is_amount:
        return None
    return Finding(is_correct=number.value == rank[0], rule=Rule.RANK_OR_NUMBER)


def _read(text: str) -> tuple[int, str] | None:
    """Rank and what it is the rank of."""
    match = _RANK.fullmatch(normalise(text))
    if match is None:
        return None
    rest = match["rest"] or ""
    if match["digits"]:
        return int(match["digits"]), rest
    word, tens = match["word"], match["tens"]
    if tens is None:
        return (_WORDS[word], rest) if word in _WORDS else None
    if tens in _TENS and _WORDS.get(word, 10) < 10:
        return _TENS[tens] + _WORDS[word], rest
    # The optional tens have swallowed the rank itself: `third floor`.
    return (_WORDS[tens], f"{word} {rest}".strip()) if tens in _WORDS else None
