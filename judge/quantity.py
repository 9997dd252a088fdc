"""Numbers as answers: read them with their unit and percent sign, and compare them without rounding errors.

A text is a quantity only if all of it is: `12.5 km` is, `12 or 13` and `about 12, maybe 15` are not. Arithmetic is
on fractions, so that `0.1 m` equals `10 cm` exactly and the tolerance alone decides what is close enough.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from judge.normalise import fold_unicode, strip_latex, unwrap


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    dimension: str
    """What is measured; an unknown unit is a dimension of its own."""
    factor: Fraction
    """Times the written number gives the dimension's base unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    value: Fraction
    """The number as written, a word such as `million` included, the unit not."""
    is_integer_literal: bool
    """Written with digits alone: a count or a year, compared exactly."""
    unit: Unit | None


PERCENT = Unit(dimension="percent", factor=Fraction(1, 100))


def _units(dimension: str, factors: dict[str, str]) -> dict[str, Unit]:
    return {
        name: Unit(dimension=dimension, factor=Fraction(factor))
        for names, factor in factors.items()
        for name in names.split()
    }


_UNITS: dict[str, Unit] = {
    **dict.fromkeys(("%", "percent", "pct", "percentage"), PERCENT),
    **_units(
        "length",
        {
            "mm millimeter millimetre": "1/1000",
            "cm centimeter centimetre": "1/100",
            "dm decimeter decimetre": "1/10",
            "m meter metre": "1",
            "km kilometer kilometre": "1000",
            "in inch inche": "0.0254",
            "ft foot feet": "0.3048",
            "yd yard": "0.9144",
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
    **_units("volume", {"ml milliliter millilitre cm3": "1/1000", "cl": "1/100", "l liter litre": "1", "m3": "1000"}),
    **_units(
        "mass",
        {
            "mg milligram": "1/1000",
            "g gram": "1",
            "kg kilogram kilo": "1000",
            "t ton tonne": "1000000",
            "lb pound": "453.59237",
            "oz ounce": "28.349523125",
        },
    ),
    **_units(
        "time",
        {
            "ms millisecond": "1/1000",
            "s sec second": "1",
            "min minute": "60",
            "h hr hour": "3600",
            "day": "86400",
            "week": "604800",
        },
    ),
    **_units("speed", {"m/s": "1", "km/h kph kmh": "5/18", "mph": "0.44704"}),
    **_units("angle", {"° deg degree": "1"}),
    **_units("celsius", {"°c c celsius degreescelsius": "1"}),
    **_units("fahrenheit", {"°f f fahrenheit degreesfahrenheit": "1"}),
    **_units("dollar", {"$ usd dollar": "1", "¢ cent": "1/100"}),
    **_units("euro", {"€ eur euro": "1"}),
    **_units("sterling", {"£ gbp": "1"}),
    **_units("yen", {"¥ jpy yen": "1"}),
}
_MAGNITUDES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "k": 10**3, "million": 10**6, "mn": 10**6}
_MAGNITUDES |= {"billion": 10**9, "bn": 10**9, "trillion": 10**12}
_MONEY_MAGNITUDES = {"m": 10**6, "b": 10**9}
_ONE_TO_NINE = "one two three four five six seven eight nine"
_TEN_TO_NINETEEN = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_FROM_TWENTY = "twenty thirty forty fifty sixty seventy eighty ninety"
_ONES = f"zero {_ONE_TO_NINE} {_TEN_TO_NINETEEN}".split()
_TENS = _FROM_TWENTY.split()
_NOT_UNITS = frozenset(
    ("or", "and", "not", "no", "more", "less", "than", "times", "half", "minus", "plus", "to", "from", "over")
)
"""Words that change a number are not its unit, even where the question holds them."""

_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,3}(?: [0-9]{3})+|[0-9]{1,30})(?:\.[0-9]{1,30})?|\.[0-9]{1,30}"
_QUANTITY = re.compile(
    r"(?:[~≈]|(?:about|approximately|approx\.?|around|roughly)\s)?\s*"
    r"(?:[a-z]\s*=\s*)?"
    r"(?P<sign>[+-])?\s*(?P<currency>[$€£¥])?\s*(?P<inner_sign>[+-])?"
    rf"(?:(?:(?P<whole>[0-9]{{1,30}})\s+)?(?P<above>{_NUMBER})\s*/\s*(?P<below>{_NUMBER})"
    rf"|(?P<number>{_NUMBER})(?:e(?P<e>[+-]?[0-9]{{1,2}})|\s*[*x]\s*10\s*\^\s*\{{?(?P<power>[+-]?[0-9]{{1,2}})\}}?)?"
    rf"|(?P<words>(?:{'|'.join(_TENS)})(?:[ -](?:{'|'.join(_ONES[1:10])}))?\b|(?:{'|'.join(_ONES)})\b))"
    r"\s*-?(?P<rest>(?:[^\W0-9_]|[%°$€£¥¢]).*)?"
)


def parse_quantity(text: str, known_words: frozenset[str] = frozenset()) -> Quantity | None:
    """The number that the whole text is, or None.

    Args:
        text: an answer, LaTeX allowed.
        known_words: words (see `words_of`) that may stand as a unit although no table lists them, such as `apple`
            when the question asks for the number of apples.
    """
    match = _QUANTITY.fullmatch(unwrap(strip_latex(fold_unicode(text)).casefold()))
    if match is None or (match["sign"] and match["inner_sign"]):
        return None
    value = _value(match)
    if value is None:
        return None
    rest, magnitude = _split_magnitude(match["rest"] or "", is_money=match["currency"] is not None)
    unit = _unit(rest, known_words) if rest else None
    if rest and unit is None:
        return None
    if match["currency"]:
        if unit is not None and unit != _UNITS[match["currency"]]:
            return None
        unit = _UNITS[match["currency"]]
    sign = -1 if "-" in (match["sign"], match["inner_sign"]) else 1
    is_integer_literal = (match["number"] or ".").replace(",", "").replace(" ", "").isdigit() and not match["e"]
    return Quantity(
        value=sign * value * magnitude,
        is_integer_literal=bool(match["words"]) or (is_integer_literal and not match["power"] and magnitude == 1),
        unit=unit,
    )


def words_of(*texts: str) -> frozenset[str]:
    """The words of some texts, in the singular, as `parse_quantity` takes them."""
    words = re.findall(r"[^\W\d_]+", " ".join(fold_unicode(text).casefold() for text in texts))
    return frozenset(_singular(word) for word in words) - _NOT_UNITS


def quantities_agree(reference: Quantity, prediction: Quantity, relative_tolerance: float) -> bool:
    """Whether two quantities are the same, by these rules.

    - Both give a unit: it must measure the same thing; known units are converted (`1 km` = `1000 m`).
    - One gives a unit: it is taken to be left out by the other (`5 cm` = `5`).
    - A percent sign on one side alone: the bare number may be the same number without the sign, or the share
      that it stands for. `12 %` equals `12` and `0.12`; it does not equal `1.2`.
    - An integer reference in the same unit is a count, a year or a label: it must agree exactly. Anything else
      must agree within `relative_tolerance` times the reference.
    """
    one, other = reference.unit, prediction.unit
    tolerance = Fraction(str(relative_tolerance))

    def agree(expected: Fraction, given: Fraction, *, is_exact: bool) -> bool:
        return abs(given - expected) <= (0 if is_exact else tolerance * abs(expected))

    if one is not None and other is not None:
        expected, given = reference.value * one.factor, prediction.value * other.factor
        is_exact = reference.is_integer_literal and one.factor == other.factor
        return one.dimension == other.dimension and agree(expected, given, is_exact=is_exact)
    if agree(reference.value, prediction.value, is_exact=reference.is_integer_literal):
        return True
    if PERCENT not in (one, other):
        return False
    expected, given = (
        quantity.value * (PERCENT.factor if quantity.unit == PERCENT else 1) for quantity in (reference, prediction)
    )
    return agree(expected, given, is_exact=False)


def _value(match: re.Match[str]) -> Fraction | None:
    if match["words"]:
        tens, _, ones = match["words"].replace("-", " ").partition(" ")
        if tens in _ONES:
            return Fraction(_ONES.index(tens))
        return Fraction(20 + 10 * _TENS.index(tens) + (_ONES.index(ones) if ones else 0))
    if match["above"]:
        below = _plain(match["below"])
        if below == 0:
            return None
        return (_plain(match["whole"]) if match["whole"] else 0) + _plain(match["above"]) / below
    return _plain(match["number"]) * Fraction(10) ** int(match["e"] or match["power"] or 0)


def _plain(digits: str) -> Fraction:
    return Fraction(digits.replace(",", "").replace(" ", ""))


def _split_magnitude(rest: str, *, is_money: bool) -> tuple[str, int]:
    """`million dollars` -> (`dollars`, 10^6)."""
    head, _, tail = rest.partition(" ")
    magnitudes = _MAGNITUDES | _MONEY_MAGNITUDES if is_money else _MAGNITUDES
    if head in magnitudes:
        return tail.strip(), magnitudes[head]
    return rest.strip(), 1


def _unit(text: str, known_words: frozenset[str]) -> Unit | None:
    compact = re.sub(r"square (\w+?)s?\b", r"\1^2", text).replace("per cent", "%").replace("^", "")
    compact = compact.replace("{", "").replace("}", "").replace(" ", "").rstrip(".")
    for name in (compact, _singular(compact)):
        if name in _UNITS:
            return _UNITS[name]
    words = [_singular(word) for word in text.split()]
    if 1 <= len(words) <= 3 and known_words.issuperset(words):
        return Unit(dimension=" ".join(words), factor=Fraction(1))
    return None


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") else word
