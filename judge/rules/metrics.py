"""Published metrics of visual question answering, for the rules to judge by.

`relaxed`: relaxed accuracy. PlotQA (Methani et al., WACV 2020, section on evaluation) accepts a numeric answer within
5 % of the true one and wants text to match exactly; ChartQA (Masry et al., Findings of ACL 2022) takes this over for
every numeric answer. Hence |prediction - reference| <= 0.05 |reference|: a reference of 0 wants 0. The papers do not
speak of years, which 5 % would make all alike: where the question asks for a year we compare it exactly.

`anls`: Average Normalized Levenshtein Similarity (Biten et al., Scene Text Visual Question Answering, ICCV 2019,
eq. 1): the best over the references of 1 - NL, where NL is the Levenshtein distance over the longer length, and 0
where NL is not below tau = 0.5. Case and runs of spaces do not count. A set's score is the mean; one verdict is a
yes or no, so an answer is right where its similarity is above zero, i.e. above one half.
"""

from __future__ import annotations

import json
from fractions import Fraction

RELAXED_TOLERANCE = Fraction(1, 20)
ANLS_THRESHOLD = 0.5
MAX_ANLS_CHARS = 256
"""Longer texts are similar only if they are equal: the distance takes time of the product of the lengths."""


def is_within(reference: Fraction, prediction: Fraction, tolerance: Fraction) -> bool:
    """|prediction - reference| <= tolerance * |reference|, without rounding."""
    return abs(prediction - reference) <= tolerance * abs(reference)


def anls(reference: str, prediction: str) -> float:
    """Best similarity to one of the references, from 0 to 1.

    Args:
        reference: a text, or a JSON array of texts each of which is a right answer.
    """
    return max(_similarity(text, prediction) for text in alternatives(reference))


def alternatives(reference: str) -> tuple[str, ...]:
    """`["IBM", "I.B.M."]` -> its texts; anything that is not a JSON array of texts is one reference."""
    if reference.lstrip().startswith("["):
        try:
            texts = json.loads(reference)
        except (json.JSONDecodeError, RecursionError):
            return (reference,)
        if isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts):
            return tuple(texts)
    return (reference,)


def _similarity(reference: str, prediction: str) -> float:
    one, other = (" ".join(text.casefold().split()) for text in (reference, prediction))
    if one == other:
        return 1.0
    longer = max(len(one), len(other))
    if longer > MAX_ANLS_CHARS or abs(len(one) - len(other)) >= ANLS_THRESHOLD * longer:
        return 0.0
    distance = levenshtein(one, other) / longer
    return 1.0 - distance if distance < ANLS_THRESHOLD else 0.0


def levenshtein(one: str, other: str) -> int:
    """Fewest insertions, deletions and replacements of a character that turn one text into the other."""
    row = list(range(len(other) + 1))
    for at, char in enumerate(one, 1):
        previous, row[0] = row[0], at
        for index, mate in enumerate(other, 1):
            previous, row[index] = row[index], min(row[index] + 1, row[index - 1] + 1, previous + (char != mate))
    return row[-1]
