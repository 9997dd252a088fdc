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
_PINT_ERRORS = (AttributeError, TypeError, ValueError, KeyError, ArithmeticError)  # pint's own are kinds of these
_NAMES = (
    (re.compile(r"(?:°|deg(?:rees?)?\.?) ?([CF])(?:elsius|entigrade|ahrenheit)?\b", re.IGNORECASE), r"deg\1"),
    (re.compile(r"\b(?:fl\.? oz\.?|fluid ounces?)"), "fluid_ounce"),
    (re.compile(r"\b(km|kg|hr|yr)s\b|(?<=[a-z]{2})\.$"), r"\1"),
    (re.compile(r"^decades?$"), "decayear"),
    (re.compile(r"\bper\b"), "/"),
    (re.compile(r"(?<=[A-Za-z])\^?\{?(-?[1-3])\}?(?![\d.])"), r"**\1"),
    (re.compile(r"[·⋅]|(?<=[a-zA-Z])-(?=[a-zA-Z])"), "*"),
)
_UNIT = re.compile(r"[A-Za-zµμΩÅ°%_]+(?:\*\*-?[1-3])?(?: ?[ /*] ?[A-Za-zµμΩÅ_]+(?:\*\*-?[1-3])?){0,4}")
_FEET = re.compile(r"^(\d+) ?(?:'|ft|feet|foot) ?(\d+(?:\.\d+)?) ?(?:\"|''|in|inch|inches)?$")
_QUANTITY = re.compile(rf"(-?)({PLAIN})\s*([^\d,]+?(?:(?<=[A-Za-z])\^?[23])?)")


@cache
def _registry() -> pint.UnitRegistry[float]:
    """Takes half a second: not at import."""
    import pint

    return pint.UnitRegistry(autoconvert_offset_to_baseunit=True)


@lru_cache(maxsize=4096)
def read_unit(text: str) -> pint.Unit | None:
    """A unit by its name or symbol; None of anything else."""
    text = text.strip()
    for pattern, name in _NAMES if len(text) <= 40 else ():
        text = pattern.sub(name, text)
    # `MW` is no `mw`: only words may be written with capitals.
    for form in (text, text.lower()) if re.search(r"[A-Za-z]{4}", text) else (text,):
        if len(form) <= 40 and _UNIT.fullmatch(form):
            try:
                return _registry().parse_units(form)
            except _PINT_ERRORS:
                continue
    return None


def _read_quantity(text: str) -> tuple[pint.Quantity[float], int] | None:
    """(quantity, digits behind its point) of `2.5 kg`, `-3 °C`, `5 ft 3 in`."""
    text = _FEET.sub(lambda feet: f"{12 * float(feet[1]) + float(feet[2]):g} inch", text)
    found = _QUANTITY.fullmatch(text) if len(text) <= 60 else None
    unit = read_unit(found[3]) if found else None
    if found is None or unit is None:
        return None
    number = re.sub(r"[, ]", "", found[2])
    return _registry().Quantity(float(found[1] + number), unit), len(number.partition(".")[2])


def same_quantity(reference: str, prediction: str, *, is_rise: bool | None = None) -> bool | None:
    """Whether two texts are the same quantity to the last digit written of each; None where one of them is none.

    `is_rise`: a rise of 5 °C is one of 9 °F; None leaves temperatures in two units open. A torque is no energy.
    """
    try:
        found = [_read_quantity(text) for text in (reference, prediction)]
        if found[0] is None or found[1] is None:
            return None
        (one, one_places), (other, other_places) = found[0], found[1]
        if is_rise:  # degrees as distances on their scale
            names = (re.sub("^degree_[CF]", r"delta_\g<0>", str(side.units)) for side in (one, other))
            one, other = (_registry().Quantity(side.magnitude, next(names)) for side in (one, other))
        bases = [side.to_root_units() for side in (one, other)]
        if is_rise is None and bases[0].check("[temperature]") and one.units != other.units:
            return None
        has_force = {"newton" in str(side.units) or "force" in str(side.units) for side in (one, other)}
        if len(has_force) > 1 and bases[0].check("[energy]"):
            return None
        if bases[0].units != bases[1].units:
            return False
        gaps = abs(one.to(other.units).magnitude - other.magnitude), abs(other.to(one.units).magnitude - one.magnitude)
    except _PINT_ERRORS:
        return None
    gap, size = abs(bases[0].magnitude - bases[1].magnitude), abs(bases[0].magnitude)
    is_rounded = gaps[0] <= 0.5 * 10**-other_places and gaps[1] <= 0.5 * 10**-one_places
    return gap <= 1e-9 * size or (is_rounded and gap <= MAX_ROUNDING * size)
