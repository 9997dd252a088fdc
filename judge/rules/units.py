"""Quantities with units on both sides, converted by pint. Its parser sees names of units alone, never a formula."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from judge.rules.amounts import PLAIN

if TYPE_CHECKING:
    import pint

MAX_ROUNDING = 0.005
"""Share by which a rounded conversion may miss: `6.2 miles` are `10 km`, `1 mile` is no `2 km`."""
_NAMES = (
    (re.compile(r"\bdeg(?:rees?)?\.? (?:celsius|centigrade)\b|° ?C\b|^celsius$", re.IGNORECASE), "degC"),
    (re.compile(r"\bdeg(?:rees?)?\.? fahrenheit\b|° ?F\b|^fahrenheit$", re.IGNORECASE), "degF"),
    (re.compile(r"\b(?:fl\.? oz\.?|fluid ounces?)"), "fluid_ounce"),
    (re.compile(r"\bnautical miles?\b"), "nautical_mile"),
    (re.compile(r"\blight[ -]years?\b"), "light_year"),
    (re.compile(r"\b(?:sq\.?|square) "), "square "),
    (re.compile(r"\b(?:cu\.?|cubic) "), "cubic "),
    (re.compile(r"\b(km|kg|lb|cup|hr|yr)s\b"), r"\1"),
    (re.compile(r"(?<=[a-z]{2})\.$"), ""),
    (re.compile(r"^decades?$"), "decayear"),
    (re.compile(r"\bper\b"), "/"),
    (re.compile(r"(?<=[A-Za-z])\^?\{?(-?[1-3])\}?(?![\d.])"), r"**\1"),
    (re.compile(r"[·⋅]|(?<=[a-zA-Z])-(?=[a-zA-Z])"), "*"),
)
_UNIT = re.compile(r"(?:[^\W\d_]|[°%_])+(?:\*\*-?[1-3])?(?: ?[ /*] ?(?:[^\W\d_]|_)+(?:\*\*-?[1-3])?){0,4}")
_PART = re.compile(rf"({PLAIN})\s*([^\d,]+?(?:(?<=[A-Za-z])\^?[23](?!\d))?)(?:,? (?:and )?|,|(?<=[a-zA-Z'\"])(?=\d)|$)(?=\d|$)")
_FEET = re.compile(r"(\d+) ?(?:'|ft|feet|foot) ?(\d+(?:\.\d+)?) ?(?:\"|''|in|inch|inches)?")


@cache
def _registry() -> pint.UnitRegistry[float]:
    """Takes half a second: not at import."""
    import pint

    registry: pint.UnitRegistry[float] = pint.UnitRegistry(autoconvert_offset_to_baseunit=True)
    return registry


@lru_cache(maxsize=4096)
def read_unit(text: str) -> pint.Unit | None:
    """A unit by its name or symbol; None of anything else."""
    import pint

    text = text.strip()
    if not text or len(text) > 40:
        return None
    for pattern, name in _NAMES:
        text = pattern.sub(name, text)
    for form in (text, text.lower()):
        # `MW` is no `mw`: only words may be written with capitals.
        if (form == text or re.search(r"[A-Za-z]{4}", text)) and _UNIT.fullmatch(form):
            try:
                return _registry().parse_units(form)
            except (pint.PintError, AttributeError, TypeError, ValueError, KeyError):
                continue
    return None


def read_quantity(text: str) -> tuple[pint.Quantity[float], int] | None:
    """(quantity, digits behind the point of its last part) of `2.5 kg`, `-3 °C`, `5 ft 3 in`, `6'2"`."""
    if len(text) > 60:
        return None
    if feet := _FEET.fullmatch(text):
        text = f"{feet[1]} ft {feet[2]} in"
    sign, text = (-1, text[1:].lstrip()) if text.startswith("-") else (1, text)
    total, end, places = None, 0, 0
    while end < len(text):
        part = _PART.match(text, end)
        unit = read_unit(part[2]) if part else None
        if part is None or unit is None or (end and unit == total.units):
            return None
        end, number = part.end(), re.sub(r"[, ]", "", part[1])
        places = len(number.partition(".")[2])
        quantity = _registry().Quantity(float(number), unit)
        if total is not None and (total.dimensionality != quantity.dimensionality or sign < 0):
            return None
        total = quantity if total is None else quantity + total
    return None if total is None else (sign * total, places)


def same_quantity(reference: str, prediction: str, *, is_difference: bool) -> bool | None:
    """Whether two texts are the same quantity to the last digit written of each; None where one of them is none.

    Args:
        is_difference: temperatures are distances on their scale, 9 °F being 5 °C.
    """
    one, other = read_quantity(reference), read_quantity(prediction)
    if one is None or other is None:
        return None
    first, second = (_as_difference(side[0]) if is_difference else side[0] for side in (one, other))
    if first.units == second.units and (first.magnitude == second.magnitude):
        return True
    roots = [(side * 1).to_root_units().units for side in (first, second)]
    if roots[0] != roots[1]:
        return False
    try:
        there, back = first.to(second.units).magnitude, second.to(first.units).magnitude
        bases = [side.to_root_units().magnitude for side in (first, second)]
    except (ArithmeticError, ValueError):
        return None
    gap, size = abs(bases[0] - bases[1]), abs(bases[0])
    if gap <= 1e-9 * size:
        return True
    is_round = abs(there - second.magnitude) <= 0.5 * 10 ** -other[1] and (
        abs(back - first.magnitude) <= 0.5 * 10 ** -one[1]
    )
    return is_round and gap <= MAX_ROUNDING * size


def _as_difference(quantity: pint.Quantity[float]) -> pint.Quantity[float]:
    name = {"degree_Celsius": "delta_degree_Celsius", "degree_Fahrenheit": "delta_degree_Fahrenheit"}.get(
        str(quantity.units)
    )
    return _registry().Quantity(quantity.magnitude, name) if name else quantity
