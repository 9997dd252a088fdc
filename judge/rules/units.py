"""Units that answers come in, and how to convert one into another."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    dimension: str
    """What is measured; a word that no table lists (`apple`) is a dimension of its own."""
    factor: Fraction = Fraction(1)
    """Times the written number gives the dimension's base unit."""
    offset: Fraction = Fraction(0)
    """Added to the written number before the factor: Fahrenheit does not start where Celsius does."""
    is_word: bool = False
    """No unit of the table but a word of the question or the reference."""
    is_clear: bool = True
    """Its sign has no other common meaning: `m` may be million, `°` a temperature, `pound` money."""


PERCENT = Unit(dimension="percent", factor=Fraction(1, 100))
CELSIUS = Unit(dimension="temperature")
KELVIN = Unit(dimension="temperature", offset=Fraction("-273.15"))
FAHRENHEIT = Unit(dimension="temperature", factor=Fraction(5, 9), offset=Fraction(-32))
_UNCLEAR = frozenset(("m", "t", "ton", "°", "deg", "degree", "pound", "oz", "ounce"))
_RELATED = frozenset({frozenset({"time", "calendar"}), frozenset({"speed", "length"})})
"""A month is no fixed number of days; the way made in an hour is a speed."""


def _units(dimension: str, factors: dict[str, str]) -> dict[str, Unit]:
    return {
        name: Unit(dimension=dimension, factor=Fraction(factor), is_clear=name not in _UNCLEAR)
        for names, factor in factors.items()
        for name in names.split()
    }


UNITS: dict[str, Unit] = {
    **dict.fromkeys(("%", "percent", "pct", "percentage"), PERCENT),
    **_units(
        "length",
        {
            "mm mms millimeter millimetre": "1/1000",
            "cm cms centimeter centimetre": "1/100",
            "dm decimeter decimetre": "1/10",
            "m meter metre": "1",
            "km kms kilometer kilometre": "1000",
            "in inch inche": "0.0254",
            "ft foot feet": "0.3048",
            "yd yds yard": "0.9144",
            "mi mile": "1609.344",
        },
    ),
    **_units(
        "area",
        {
            "mm2 millimeter2 millimetre2": "1/1000000",
            "cm2 centimeter2 centimetre2": "1/10000",
            "m2 sqm meter2 metre2": "1",
            "km2 kilometer2 kilometre2": "1000000",
            "ha hectare": "10000",
        },
    ),
    **_units(
        "volume", {"ml mls milliliter millilitre cm3": "1/1000", "cl": "1/100", "l liter litre": "1", "m3": "1000"}
    ),
    **_units(
        "mass",
        {
            "mg milligram": "1/1000",
            "g gram": "1",
            "kg kgs kilogram kilo": "1000",
            "t ton tonne": "1000000",
            "lb lbs pound": "453.59237",
            "oz ounce": "28.349523125",
        },
    ),
    **_units(
        "time",
        {
            "ms millisecond": "1/1000",
            "s sec second": "1",
            "min minute": "60",
            "h hr hrs hour": "3600",
            "day": "86400",
            "week": "604800",
        },
    ),
    # No fixed number of days.
    **_units("calendar", {"month": "1", "year yr yrs yearold yearsold yrold yrsold": "12"}),
    **_units(
        "speed",
        {
            "m/s meter/second metre/second": "1",
            "km/h kph kmh kmph kilometer/hour kilometre/hour": "5/18",
            "mph mi/h mile/hour": "0.44704",
        },
    ),
    **_units("angle", {"° deg degree": "1"}),
    **dict.fromkeys(["°c", "celsius", "degreescelsius", "degreecelsius"], CELSIUS),
    **dict.fromkeys(["°f", "fahrenheit", "degreesfahrenheit", "degreefahrenheit"], FAHRENHEIT),
    **{"c": replace(CELSIUS, is_clear=False), "f": replace(FAHRENHEIT, is_clear=False), "kelvin": KELVIN},
    **_units("dollar", {"$ usd dollar": "1", "¢ cent": "1/100"}),
    **_units("euro", {"€ eur euro": "1"}),
    **_units("sterling", {"£ gbp": "1"}),
    **_units("yen", {"¥ jpy yen": "1"}),
}

_MONEY = ("dollar", "euro", "sterling", "yen")
_OTHER_MEANINGS: dict[Unit, tuple[Unit, ...]] = {
    UNITS["m"]: (
        UNITS["minute"],
        UNITS["mile"],
        *(Unit(dimension=currency, factor=Fraction(10**6)) for currency in _MONEY),
    ),
    UNITS["c"]: tuple(Unit(dimension=currency, factor=Fraction(1, 100)) for currency in _MONEY[:2]),
    UNITS["f"]: (UNITS["foot"],),
    UNITS["°"]: (CELSIUS, FAHRENHEIT),
    UNITS["t"]: (Unit(dimension="mass", factor=Fraction("907184.74")),),
    UNITS["pound"]: (UNITS["£"],),
    UNITS["oz"]: (Unit(dimension="volume", factor=Fraction("0.0295735")),),
}
"""What else a sign may stand for: `30m` of an hour, `5M` of money, `25c` of a dollar, `25°` of heat."""


_CASED = re.compile(
    r"[0-9]\s*(?:(?P<milli>[mM])(?:[wWvVgGjJmlL]|Wh|Hz|Pa)|(?P<bits>[kKmMgGtT][bB])(?P<rate>ps|PS|/s)?|(?P<million>[mM]))\b"
)


def meanings(unit: Unit) -> tuple[Unit, ...]:
    """The unit itself, and what its sign may mean besides."""
    return unit, *_OTHER_MEANINGS.get(unit, ())


def are_confused(one: Unit, other: Unit) -> bool:
    """Whether units of different dimensions may yet be meant alike."""
    dimensions = ({meaning.dimension for meaning in meanings(unit)} for unit in (one, other))
    return frozenset((one.dimension, other.dimension)) in _RELATED or not set.isdisjoint(*dimensions)


def unit_of(text: str) -> Unit | None:
    """The unit of the table that a text names, in the singular or plural, spelled out or not."""
    compact = re.sub(r"square (\w+?)s?\b", r"\1^2", text).replace("per cent", "%").replace("^", "")
    compact = re.sub(r"s? per |s/", "/", compact)
    compact = re.sub(r"[{}() ]", "", compact).rstrip(".")
    return UNITS.get(compact) or UNITS.get(singular(compact))


def has_other_case(one: str, other: str) -> bool:
    """Whether two texts hold units that the case of a letter parts: `5 mW` is a billionth of `5 MW`."""
    signs = [sign for text in (one, other) if (sign := _case_of_unit(text))]
    return len(set(signs)) > 1


def _case_of_unit(text: str) -> str:
    """The letters of a unit whose case counts; nothing where it holds none."""
    match = _CASED.search(text)
    if match is None or (match["million"] and re.search(r"[$€£¥]", text)):
        return ""
    if not match["bits"]:
        return match["million"] or match["milli"]
    prefix, bit = match["bits"][0], match["bits"][1]
    # Nobody writes of millibits; `gb` is said of bytes.
    is_of_bytes = match["bits"] in ("gb", "tb") and not match["rate"]
    return (prefix if prefix in "mM" and not match["rate"] else "") + ("B" if is_of_bytes else bit)


def convert(value: Fraction, unit: Unit, target: Unit) -> Fraction:
    """A number in one unit, as a number in another of the same dimension."""
    assert unit.dimension == target.dimension, (unit, target)
    return (value + unit.offset) * unit.factor / target.factor - target.offset


def units_like(unit: Unit) -> frozenset[Unit]:
    """All units of the table that measure the same."""
    return frozenset({other for other in UNITS.values() if other.dimension == unit.dimension})


def singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") else word
