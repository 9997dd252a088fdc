"""Numbers and dates: the same as written (certain), and in the ways people write them (for guesses)."""

from __future__ import annotations

import re
from datetime import date
from fractions import Fraction
from typing import NamedTuple

from dateutil import parser

PLAIN = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,3}(?: \d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?"
_ONE_NUMBER = re.compile(rf"([$€£¥₹]?[-+]?)(?!0\d)({PLAIN})( ?%|(?: [^\W\d_]+){{0,3}})")
_NAMES = "one two three four five six seven eight nine ten eleven twelve half first second third fourth zero twenty"
_WORDS = dict(zip(_NAMES.split(), [*map(str, range(1, 13)), "1/2", "1st", "2nd", "3rd", "4th", "0", "20"], strict=True))
SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
CURRENCIES = dict.fromkeys(("$", "us$", "usd", "dollar", "dollars"), "$") | dict.fromkeys(("¥", "jpy", "yen"), "¥")
CURRENCIES |= dict.fromkeys(("€", "eur", "euro", "euros"), "€") | {"£": "£", "gbp": "£", "cents": "¢"}
_AMOUNT = re.compile(
    r"(?:(?:about|approximately|around|roughly|exactly|only|just) |[~≈] ?)?"
    r"(?P<minus>-|minus |negative )?\+?(?P<sign>US\$|[$€£¥])? ?(?P<minus2>-)?"
    rf"(?:(?:(?P<whole>\d+) )?(?P<over>\d+) ?/ ?(?P<under>[1-9]\d*)|(?P<plain>{PLAIN}|\.\d+))(?!\d)"
    r"(?P<rest>(?!s\b) ?(?![π√])[^\W\d_][^\d,;:!?π√=()+]{0,40}(?:\^?[23])?| ?[%°'\"][^\d,;:!?]{0,20}|)",
    re.IGNORECASE,
)
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6}\.?"
_DEFINITE = re.compile(
    rf"\d{{4}}-\d\d-\d\d|\d{{1,2}}(?:st|nd|rd|th)?[ -](?:of )?{_MONTH},?[ -]\d{{4}}"
    rf"|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}}",
    re.IGNORECASE,
)


class Amount(NamedTuple):
    value: Fraction
    unit: str
    """What is said behind the number, `%` included; `$` of `5 dollars` too."""


def one_number(text: str) -> tuple[str, str] | None:
    """(digits, what stands around them): `1200` and `$#` of `$1,200.00`; None of `007`, `2E3`, `3/4`, `v2`."""
    found = _ONE_NUMBER.fullmatch(text)
    digits = re.sub(r"\.0{1,2}$", "", re.sub(r"[, ]", "", found[2])) if found else ""
    return (digits, f"{found[1]}#{found[3].strip()}") if found else None


def is_year_like(digits: str) -> bool:
    return re.fullmatch(r"(?:1\d{3}|20\d\d|2100)(?:\.0)?", digits) is not None


def is_within_5_percent(reference: Fraction, prediction: Fraction) -> bool:
    """Relaxed accuracy (PlotQA, WACV 2020; ChartQA, ACL 2022), of the reference, without rounding."""
    return abs(prediction - reference) * 20 <= abs(reference)


def with_digits(text: str) -> str:
    """`five dots` -> `5 dots`, `third floor` -> `3rd floor`; `the red one` stays."""
    pattern = r"(?<!\d )\b[a-z]{3,9}\b(?<!\w one)"
    return re.sub(pattern, lambda found: _WORDS.get(found[0].lower(), found[0]), text, flags=re.IGNORECASE)


def read_amount(text: str) -> Amount | None:
    """An amount with its unit; None where the text says more, or something else."""
    if len(text) > 80 or (found := _AMOUNT.fullmatch(text)) is None:
        return None
    if found["over"]:
        value = Fraction(int(found["over"]), int(found["under"])) + int(found["whole"] or 0)
    else:
        value = Fraction(re.sub(r"[, ]", "", found["plain"]))
    sign, words = (found["sign"] or "").lower(), found["rest"].split()
    while words and (scale := SCALES.get(words[0].lower())):
        value, words = value * scale, words[1:]
    value = -value if found["minus"] or found["minus2"] else value
    unit = re.sub(r"^per ?cent$", "%", " ".join(words)) or sign
    return Amount(value=value, unit=CURRENCIES.get(unit.lower(), unit)) if len(words) <= 3 else None


def definite_date(text: str) -> date | None:
    """A date that can be read in one way only: ISO, or the month named, with day and year of four digits."""
    try:
        return parser.parse(text).date() if _DEFINITE.fullmatch(text) else None
    except (ValueError, OverflowError):
        return None
