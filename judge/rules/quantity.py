"""Numbers as answers: read them with their unit and percent sign.

A text is a quantity only if all of it is: `12.5 km` is, `12 or 13` and `about 12, maybe 15` are not. Arithmetic is
on fractions, so that `0.1 m` equals `10 cm` exactly and the tolerance alone decides what is close enough.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from judge.rules.normalise import fold_unicode, strip_latex, unwrap
from judge.rules.units import UNITS, Unit, singular, unit_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    value: Fraction
    """The number as written, a word such as `million` included, the unit not."""
    is_integer_literal: bool
    """Written with digits alone: a count or a year, compared exactly."""
    unit: Unit | None
    has_leading_zero: bool = False
    """`007`: as likely a label as an amount."""
    has_lone_separator: bool = False
    """`1,000` or `1.000`: where one sign parts thousands, elsewhere the other does."""
    is_bracketed: bool = False
    """`(5)`: an accountant's minus."""
    fraction: tuple[Fraction, Fraction] | None = None
    """Above and below a slash: `120/80` may be a pair of numbers, `10/12` a date."""
    last_place: Fraction | None = None
    """What one more in the last digit adds: 1/10 for `1.2`, 100,000 for `1.2 million`. None for fractions."""
    magnitude: int = 1
    """What a word such as `million` put into the value."""
    is_plain: bool = True
    """Digits or a number word: neither `6/3` nor `1e3` nor `2 dozen`, which may be a sum left undone."""


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
_FACTORIAL = re.compile(r"[0-9]+!")
_QUANTITY = re.compile(
    r"(?:[~≈]|(?:about|approximately|approx\.?|around|roughly)\s)?\s*"
    r"(?:(?P<variable>[a-z])\s*=\s*)?"
    r"(?P<sign>[+-]|(?:minus|negative)\s)?\s*(?P<currency>[$€£¥])?\s*(?P<inner_sign>[+-])?"
    rf"(?:(?:(?P<whole>[0-9]{{1,30}})\s+)?(?P<above>{_NUMBER})\s*/\s*(?P<below>{_NUMBER})"
    rf"|(?P<number>{_NUMBER})(?:e(?P<e>[+-]?[0-9]{{1,2}})|\s*[*x]\s*10\s*\^\s*\{{?(?P<power>[+-]?[0-9]{{1,2}})\}}?)?"
    rf"|(?P<words>(?:{'|'.join(_TENS)})(?:[ -](?:{'|'.join(_ONES[1:10])}))?\b|(?:{'|'.join(_ONES)})\b))"
    r"\s*(?:-?(?P<rest>(?:[^\W0-9_]|[%°$€£¥¢]).*))?"
)


def parse_quantity(text: str, known_words: frozenset[str] = frozenset()) -> Quantity | None:
    """The number that the whole text is, or None.

    Args:
        text: an answer, LaTeX allowed.
        known_words: words (see `words_of`) that may stand as a unit although no table lists them, such as `apple`
            when the question asks for the number of apples.
    """
    plain = strip_latex(fold_unicode(text)).casefold()
    if _FACTORIAL.fullmatch(plain):
        return None
    match = _QUANTITY.fullmatch(unwrap(plain))
    if match is None or (match["sign"] and match["inner_sign"]):
        return None
    value = _value(match)
    if value is None or _is_other_variable(match["variable"], known_words) or _is_decade(match):
        return None
    rest, magnitude = _split_magnitude(match["rest"] or "", is_money=match["currency"] is not None)
    unit = _unit(rest, known_words) if rest else None
    if rest and unit is None:
        return None
    if match["currency"]:
        if unit is not None and unit != UNITS[match["currency"]]:
            return None
        unit = UNITS[match["currency"]]
    is_negative = (match["sign"] or "+") != "+" or match["inner_sign"] == "-"
    is_integer_literal = (match["number"] or ".").replace(",", "").replace(" ", "").isdigit() and not match["e"]
    return Quantity(
        value=(-1 if is_negative else 1) * value * magnitude,
        is_integer_literal=bool(match["words"]) or (is_integer_literal and not match["power"] and magnitude == 1),
        unit=unit,
        has_leading_zero=re.fullmatch(r"0[0-9]+", match["number"] or "") is not None,
        has_lone_separator=re.fullmatch(r"[1-9][0-9]{0,2}[.,][0-9]{3}", match["number"] or "") is not None,
        is_bracketed=plain.strip().startswith("("),
        fraction=_written_fraction(match, text),
        last_place=_last_place(match, magnitude),
        magnitude=magnitude,
        is_plain=not (match["above"] or match["e"] or match["power"] or magnitude > 1),
    )


def _last_place(match: re.Match[str], magnitude: int) -> Fraction | None:
    number = match["number"]
    if number is None:
        return None
    power = int(match["e"] or match["power"] or 0) - len(number.partition(".")[2])
    return Fraction(10) ** power * magnitude


def _written_fraction(match: re.Match[str], text: str) -> tuple[Fraction, Fraction] | None:
    """`3/4`, and neither `2 3/4` nor a fraction set in LaTeX, which are numbers and nothing else."""
    if not match["above"] or match["whole"] or "frac" in text:
        return None
    return _plain(match["above"]), _plain(match["below"])


def _is_other_variable(variable: str | None, known_words: frozenset[str]) -> bool:
    """`y = 5` where the question speaks of x."""
    named = {word for word in known_words if len(word) == 1} - {"a", "i"}
    return variable is not None and bool(named) and variable not in named


def _is_decade(match: re.Match[str]) -> bool:
    """`1990s` is no number of seconds."""
    return match["rest"] == "s" and re.search(r"[0-9]{3}0s$", match[0]) is not None


def words_of(*texts: str) -> frozenset[str]:
    """The words of some texts, in the singular, as `parse_quantity` takes them."""
    words = re.findall(r"[^\W\d_]+", " ".join(fold_unicode(text).casefold() for text in texts))
    return frozenset(singular(word) for word in words) - _NOT_UNITS


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
    if unit := unit_of(text):
        return unit
    words = [singular(word) for word in text.split()]
    if 1 <= len(words) <= 3 and known_words.issuperset(words):
        return Unit(dimension=" ".join(words), is_word=True)
    return None
