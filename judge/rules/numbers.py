"""Compare two numbers as answers, and say by which rule.

Units are converted; a definite number must agree. A unit that stands on one side alone is the hard part: `5 kg` for
`5` is right where the question says kg, wrong where it counts apples, and open where it says nothing. There the number
decides if nobody else can: data sets often leave the unit out, and a wrong one is rare beside that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from judge.rules.asked import Asked
from judge.rules.closeness import NEAR_CONVERTED, Closeness, doubt_difference, may_be_no_share
from judge.rules.findings import Finding, Rule, right, wrong
from judge.rules.quantity import Quantity
from judge.rules.units import KELVIN, PERCENT, Unit, are_confused, meanings, unit_of, units_like

_Agree: TypeAlias = Callable[[Quantity, Quantity], bool]
_MAY_BE_SCALED = (Rule.NUMBER, Rule.COUNT, Rule.NO_READING, Rule.UNSAID_UNIT)
_VAGUE = frozenset(
    ("more", "less", "fewer", "total", "extra", "additional", "other", "hundred", "thousand", "million", "billion")
)
"""Words after `how many` that name no thing: `how many more did he earn`."""


def compare_quantities(reference: Quantity, prediction: Quantity, asked: Asked, closeness: Closeness) -> Finding:
    """Whether two quantities are the same.

    Args:
        asked: what the question says about unit, share and count.
        closeness: how near they have to be.
    """
    finding = _compare(reference, prediction, asked, closeness)
    if finding.is_correct and reference.has_leading_zero != prediction.has_leading_zero:
        return right(Rule.LABEL)
    if finding.is_correct and not asked.is_amount and _may_be_years(reference, prediction):
        return right(Rule.LABEL)
    if finding.is_correct and not asked.is_share and may_be_no_share(reference, prediction):
        return right(Rule.FRACTION)
    if finding.is_correct or finding.rule not in _MAY_BE_SCALED:
        return finding
    if finding.rule is not Rule.UNSAID_UNIT and (doubt := doubt_difference(reference, prediction, asked)):
        return doubt
    # `5` for `5 million`, or where the question asks for millions: perhaps right, though not as written.
    bare, other = sorted((reference, prediction), key=lambda quantity: quantity.magnitude)
    is_scaled = bare.magnitude == 1 and other.magnitude > 1 and bare.value * other.magnitude == other.value
    is_named = asked.scale > 1 and asked.scale in (
        bare.value and other.value / bare.value,
        other.value and bare.value / other.value,
    )
    return _finding(is_named, Rule.UNSAID_SCALE) if is_named or is_scaled else finding


def _may_be_years(reference: Quantity, prediction: Quantity) -> bool:
    """Two that a share of the value makes alike, though the question does not say that it asks for a year."""
    sides = reference, prediction
    return reference.value != prediction.value and all(
        side.is_integer_literal and side.unit is None and 1500 <= side.value <= 2100 for side in sides
    )


def _compare(reference: Quantity, prediction: Quantity, asked: Asked, closeness: Closeness) -> Finding:
    one, other, agree = reference.unit, prediction.unit, closeness.agree
    if one is None and other is None:
        return _finding(agree(reference, prediction), Rule.NUMBER)
    if one is not None and other is not None:
        return _both_units(reference, prediction, one, other, agree)
    unit = one or other
    assert unit is not None
    if unit == PERCENT:
        return _one_percent(reference, prediction, asked, agree)
    if unit.is_word:
        return _one_word(reference, prediction, unit, asked, agree)
    return _one_unit(reference, prediction, unit, asked, closeness)


def _both_units(reference: Quantity, prediction: Quantity, one: Unit, other: Unit, agree: _Agree) -> Finding:
    can_agree = any(
        agree(replace(reference, unit=this), replace(prediction, unit=that))
        for this in meanings(one)
        for that in meanings(other)
        if this.dimension == that.dimension
    )
    if one.dimension == other.dimension:
        is_same = agree(reference, prediction)
        return wrong(Rule.UNCLEAR_UNIT) if can_agree and not is_same else _finding(is_same, Rule.NUMBER)
    if one.is_word or other.is_word:
        return wrong(Rule.UNKNOWN_UNIT, f"{one.dimension} against {other.dimension}")
    if are_confused(one, other):
        return _finding(can_agree, Rule.UNCLEAR_UNIT)
    return wrong(Rule.OTHER_DIMENSION, f"{other.dimension} against {one.dimension}")


def _one_percent(reference: Quantity, prediction: Quantity, asked: Asked, agree: _Agree) -> Finding:
    """`12 %` may be written as 12 or as 0.12; it is never 1.2."""
    bare = prediction.value if reference.unit else reference.value
    as_number = agree(_without_unit(reference), _without_unit(prediction))
    as_share = agree(_as_share(reference), _as_share(prediction))
    if not as_number and not as_share:
        return wrong(Rule.NO_READING)
    if asked.is_share and abs(bare) < 1:
        if not as_share:
            return _finding(asked.is_percent or reference.unit is not None, Rule.UNSAID_PERCENT)
        return right(Rule.NUMBER)
    if asked.is_share and abs(bare) > 1 and as_number:
        return right(Rule.NUMBER)
    if asked.is_percent and as_number:
        return right(Rule.NUMBER)
    return right(Rule.UNSAID_PERCENT)


def _one_word(reference: Quantity, prediction: Quantity, unit: Unit, asked: Asked, agree: _Agree) -> Finding:
    """`5 apples` against `5`: safe where the question counts apples."""
    is_same = agree(reference, prediction)
    if asked.counted.issuperset(unit.dimension.split()):
        return _finding(is_same, Rule.COUNT)
    is_from_reference = reference.unit is not None
    is_open = asked.is_amount if is_from_reference else not asked.counted
    return _finding(is_same and is_open, Rule.UNKNOWN_UNIT)


def _one_unit(reference: Quantity, prediction: Quantity, unit: Unit, asked: Asked, closeness: Closeness) -> Finding:
    """A unit of the table on one side: the bare number is in the unit that the question names, if it names one."""
    agree = closeness.agree
    named = [other for other in asked.units if other.dimension == unit.dimension]
    readings = [compare_quantities(*_fill(reference, prediction, other), asked, closeness) for other in named]
    if readings and len(set(readings)) == 1:
        return readings[0]
    if readings:
        return right(Rule.UNSAID_UNIT)
    is_same = agree(reference, prediction)
    if any(are_confused(unit, other) for other in asked.units):
        return _finding(is_same, Rule.UNCLEAR_UNIT)
    if unit.dimension == "temperature" and 1000 in (reference.magnitude, prediction.magnitude):
        # `300 K` was read as thousands.
        sides = [q if q.unit else replace(q, value=q.value / 1000, unit=KELVIN) for q in (reference, prediction)]
        return _finding(agree(sides[0], sides[1]), Rule.UNCLEAR_UNIT)
    if not is_same and not unit.is_clear:
        millions = [quantity.value * (10**6 if quantity.unit else 1) for quantity in (reference, prediction)]
        return _finding(unit.dimension == "length" and millions[0] == millions[1], Rule.UNCLEAR_UNIT)
    if not is_same:
        is_possible = any(
            NEAR_CONVERTED.agree(*_fill(reference, prediction, other)) for other in units_like(unit) - {unit}
        )
        return wrong(Rule.UNSAID_UNIT if is_possible else Rule.NO_READING)
    counts_things = reference.unit is None and _counts_things(asked, unit)
    if counts_things and not asked.units and unit.is_clear:
        return wrong(Rule.UNIT_OF_A_COUNT)
    is_of_another = bool(asked.units) or counts_things
    return _finding(not is_of_another, Rule.UNSAID_UNIT)


def _counts_things(asked: Asked, unit: Unit) -> bool:
    """`How many apples`; not `how many more minutes` or `how many US dollars`, where the unit is one of the words."""
    named = [found for word in asked.counted if (found := unit_of(word))]
    is_measure = any(other.dimension == unit.dimension or are_confused(other, unit) for other in named)
    return bool(asked.counted - _VAGUE) and not is_measure


def _fill(reference: Quantity, prediction: Quantity, unit: Unit) -> tuple[Quantity, Quantity]:
    """Both sides with a unit, the bare one with this."""
    if reference.unit is None:
        return replace(reference, unit=unit), prediction
    return reference, replace(prediction, unit=unit)


def _without_unit(quantity: Quantity) -> Quantity:
    return replace(quantity, unit=None)


def _as_share(quantity: Quantity) -> Quantity:
    factor = PERCENT.factor if quantity.unit == PERCENT else 1
    return replace(quantity, value=quantity.value * factor, unit=None, is_integer_literal=False)


def _finding(is_correct: bool, rule: Rule) -> Finding:
    return Finding(is_correct=is_correct, rule=rule, detail="same" if is_correct else "different")
