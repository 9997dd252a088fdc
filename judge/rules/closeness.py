"""How near two numbers have to be, and why two that differ may yet mean the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from judge.rules.asked import Asked
from judge.rules.findings import Finding, Rule, right, wrong
from judge.rules.metrics import is_within
from judge.rules.quantity import Quantity
from judge.rules.units import PERCENT, convert

_MAX_PLAIN_FRACTION = 31
"""`7/2` against `3.5` is a fraction, `120/80` against `1.5` may be none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Closeness:
    """How near two numbers have to be."""

    tolerance: Fraction
    """Share of the reference."""
    is_exact_for_integers: bool
    """An integer in the same unit is a count, a year or a label: it must agree exactly."""

    def agree(self, reference: Quantity, prediction: Quantity) -> bool:
        """Whether the numbers do, units of the same dimension converted, a unit on one side ignored."""
        one, other = reference.unit, prediction.unit
        value, is_same_unit = prediction.value, True
        if one is not None and other is not None:
            value = convert(value, other, one)
            is_same_unit = (one.factor, one.offset) == (other.factor, other.offset)
        is_exact = self.is_exact_for_integers and reference.is_integer_literal and is_same_unit
        return is_within(reference.value, value, Fraction(0) if is_exact else self.tolerance)


NEAR = Closeness(tolerance=Fraction(1, 100), is_exact_for_integers=False)
NEAR_CONVERTED = Closeness(tolerance=Fraction(1, 20), is_exact_for_integers=False)
"""A wrong number this near may be a rounded right one."""


def may_be_no_share(reference: Quantity, prediction: Quantity) -> bool:
    """Equal as fractions, though they may be dates or pairs of numbers: `10/12` and `5/6`, `120/80` and `1.5`."""
    one, other = reference.fraction, prediction.fraction
    if one and other:
        return one != other
    lone = one or other
    return lone is not None and lone[0] > lone[1] and lone[0] > _MAX_PLAIN_FRACTION


def doubt_difference(reference: Quantity, prediction: Quantity, asked: Asked) -> Finding | None:
    """A finding that is not certain where two numbers that differ may yet mean the same, else None."""
    sides = reference, prediction
    may_change_sign = asked.is_fall or reference.is_bracketed or prediction.is_bracketed
    if may_change_sign and _are_opposite(reference, prediction):
        return right(Rule.SIGN)
    if _may_be_pairs(reference, prediction) or _may_be_pairs(prediction, reference):
        return wrong(Rule.FRACTION)
    if any(side.has_lone_separator for side in sides) and _are_thousands(reference, prediction):
        return wrong(Rule.UNSAID_SCALE)
    if asked.is_percent and (_is_hundredfold(reference, prediction) or _is_hundredfold(prediction, reference)):
        return wrong(Rule.UNSAID_PERCENT)
    return wrong(Rule.NEARLY) if _may_be_rounded(reference, prediction) else None


def _are_opposite(one: Quantity, other: Quantity) -> bool:
    """Alike but for the sign, where a unit may stand on one side alone: a fall of `12%` and `-12`."""
    if one.unit is None or other.unit is None or one.unit == other.unit:
        return one.value == -other.value or _share(one) == -_share(other)
    return one.unit.dimension == other.unit.dimension and one.value == -convert(other.value, other.unit, one.unit)


def _may_be_pairs(one: Quantity, other: Quantity) -> bool:
    """`2/5` may be two of five; `5/6` may be `6/5` with day and month turned, `2019/20` a season."""
    if one.fraction is None:
        return False
    if one.fraction[0] == other.value or one.fraction[::-1] == other.fraction:
        return True
    if other.fraction is None or one.fraction[0] != other.fraction[0] or not 1500 <= one.fraction[0] <= 2100:
        return False
    return one.fraction[1] < 100 and other.fraction[1] % 100 == one.fraction[1]


def _are_thousands(one: Quantity, other: Quantity) -> bool:
    """`1.234` and `1,234`, or `1234`."""
    low, high = sorted((abs(one.value), abs(other.value)))
    is_plain = all(side.has_lone_separator or side.is_integer_literal for side in (one, other))
    return is_plain and low * 1000 == high


def _is_hundredfold(percentage: Quantity, share: Quantity) -> bool:
    """`33` and `1/3` where a percentage is asked for; `0.33` would be a third of a percent."""
    is_bare = percentage.unit is None and share.unit is None
    return (
        is_bare
        and share.fraction is not None
        and NEAR_CONVERTED.agree(percentage, replace(share, value=share.value * 100))
    )


def _may_be_rounded(reference: Quantity, prediction: Quantity) -> bool:
    """Near, or less near but equal to the last place that one of them writes. Two integers in one unit are not."""
    one, other = reference.unit, prediction.unit
    if PERCENT in (one, other) and None in (one, other):
        shares = [replace(side, value=_share(side), unit=None) for side in (reference, prediction)]
        return NEAR_CONVERTED.agree(*shares)
    if one is not None and other is not None and one != other:
        return NEAR_CONVERTED.agree(reference, prediction)
    if reference.is_integer_literal and prediction.is_integer_literal:
        return False
    steps = [side.last_place for side in (reference, prediction) if side.last_place is not None]
    is_same_when_rounded = bool(steps) and abs(reference.value - prediction.value) * 2 <= max(steps)
    return NEAR.agree(reference, prediction) or (is_same_when_rounded and NEAR_CONVERTED.agree(reference, prediction))


def _share(quantity: Quantity) -> Fraction:
    return quantity.value * PERCENT.factor if quantity.unit == PERCENT else quantity.value
