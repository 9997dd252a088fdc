"""Ranges as answers, and answers of several numbers where one is wanted."""

from __future__ import annotations

import re
from dataclasses import replace

from judge.rules.asked import Asked
from judge.rules.closeness import NEAR, Closeness
from judge.rules.findings import Finding, Rule, wrong
from judge.rules.normalise import digits_of, fold_unicode, unwrap
from judge.rules.numbers import compare_quantities
from judge.rules.quantity import Quantity, parse_quantity

_JOINTS = re.compile(r"\s*(?:,\s+(?:or\s+)?|;|\bor\b)\s*")
_RANGE = re.compile(r"(?:between|from)?\s*(?P<low>[^-]+?)\s*(?:-|\bto\b|\band\b)\s*(?P<high>[^-]+)")


def compare_several(reference: str, prediction: str, asked: Asked, closeness: Closeness) -> Finding | None:
    """Ranges, and hedges over several numbers; None where the texts are neither.

    `10-15` equals `between 10 and 15`. Where one number is the answer, `7 or 8` and `5 to 9` are no definite answer.
    """
    expected, given = _read_range(reference), _read_range(prediction)
    if expected and given:
        pairs = zip(expected, given, strict=True)
        findings = [compare_quantities(one, other, asked, closeness) for one, other in pairs]
        is_certain = all(finding.is_certain for finding in findings)
        is_same = all(finding.is_correct for finding in findings)
        rule, detail = Rule.RANGE if is_certain else Rule.UNSAID_UNIT, "same" if is_same else "different"
        return Finding(is_correct=is_same, rule=rule, detail=detail)
    number = parse_quantity(reference)
    if number is None or digits_of(reference) == digits_of(prediction):
        return None
    if given:
        # `2010 to 2012` may say how long `2 years` are.
        return wrong(Rule.SEVERAL_NUMBERS) if number.unit is None or given[0].unit else None
    parts = [part for part in _JOINTS.split(unwrap(fold_unicode(prediction)).casefold()) if part]
    numbers = [quantity for part in parts if (quantity := parse_quantity(part))]
    if len(numbers) < len(parts) or len({quantity.unit for quantity in numbers}) > 1:
        # Also `2 hours, 30 minutes` and `50%, 0.5`: one number in two units.
        return None
    near = replace(NEAR, is_exact_for_integers=True)
    is_one = all(
        near.agree(number, quantity)
        for quantity in numbers
        if None in (number.unit, quantity.unit) or number.unit == quantity.unit
    )
    return wrong(Rule.SEVERAL_NUMBERS) if len({quantity.value for quantity in numbers}) > 1 and not is_one else None


def _read_range(text: str) -> tuple[Quantity, Quantity] | None:
    """Two rising numbers with a dash or words between them. `3-2` is a score, `555-1234` may be a telephone number."""
    text = unwrap(fold_unicode(text)).casefold()
    match = _RANGE.fullmatch(text)
    if match is None or (" and " in text and not text.startswith("between")):
        return None
    low, high = parse_quantity(match["low"]), parse_quantity(match["high"])
    if low is None or high is None:
        return None
    if low.unit is None and high.unit is not None:
        low = replace(low, unit=high.unit)
    is_rising = low.unit == high.unit and low.value < high.value
    return (low, high) if is_rising else None
