"""Numbers and dates: the same as written (certain), and in the ways people write them (for guesses)."""

from __future__ import annotations

import re
from datetime import date, datetime
from fractions import Fraction
from typing import NamedTuple

from dateutil import parser

PLAIN = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,3}(?: \d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?"
_ONE_NUMBER = re.compile(rf"([$€£¥₹]?[-+]?)(?!0\d)({PLAIN})( ?%|(?: [^\W\d_]+){{0,3}})")
_NAMES = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen zero twenty thirty forty fifty sixty seventy eighty ninety half first second third fourth"
)
_DIGITS = [*map(str, (*range(1, 20), 0, *range(20, 100, 10))), "1/2", "1st", "2nd", "3rd", "4th"]
_WORDS = dict(zip(re.findall(r"\w+", _NAMES), _DIGITS, strict=True))
SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SIGNS = {"k": 10**3, "K": 10**3, "m": 10**6, "M": 10**6, "b": 10**9, "B": 10**9, "bn": 10**9}
CURRENCIES = dict.fromkeys(("$", "us$", "usd", "dollar", "dollars"), "$") | dict.fromkeys(("¥", "jpy", "yen"), "¥")
CURRENCIES |= dict.fromkeys(("€", "eur", "euro", "euros"), "€") | dict.fromkeys(("£", "gbp"), "£")
_AMOUNT = re.compile(
    r"(?:(?:about|approximately|around|roughly|exactly|only|just) |[~≈] ?)?"
    r"(?P<minus>-|minus |negative )?\+?(?P<sign>US\$|[$€£¥])? ?(?P<minus2>-)?"
    rf"(?:(?:(?P<whole>\d+) )?(?P<over>\d+) ?/ ?(?P<under>[1-9]\d*)|(?P<plain>{PLAIN}|\.\d+)"
    r"(?: ?[×x*] ?10\^?\{?(?P<power>-?\d\d?)\}?|e(?P<e>[-+]?\d\d?))?)(?!\d)"
    r"(?P<rest>(?!s\b) ?(?![π√])[^\W\d_][^\d,;:!?π√=()+]{0,40}(?:\^?[23])?| ?[%°'\"][^\d,;:!?]{0,20}|)",
    re.IGNORECASE,
)

_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6}\.?"
_DEFINITE = re.compile(
    rf"\d{{4}}-\d\d-\d\d|\d{{1,2}}(?:st|nd|rd|th)?[ -](?:of )?{_MONTH},?[ -]\d{{4}}"
    rf"|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}}",
    re.IGNORECASE,
)
_DATE_LIKE = re.compile(rf"\b{_MONTH}(?![a-z])|\d[-/.]\d{{1,2}}[-/.]\d", re.IGNORECASE)
_CLOCK = re.compile(r"\b\d{1,2}(?::\d\d){1,2}\b|\b\d{1,2} ?[ap]\.?m\b", re.IGNORECASE)


class Amount(NamedTuple):
    value: Fraction
    currency: str
    unit: str
    """What else is said behind the number, `%` included."""


def one_number(text: str) -> tuple[str, str] | None:
    """(digits, what stands around them) of a text with one plain number, such as `$1,200.00` or `5 km`.

    Without grouping marks and a trailing .0; None of `007`, `2E3`, `3/4`, `v2`.
    """
    found = _ONE_NUMBER.fullmatch(text)
    digits = re.sub(r"\.0{1,2}$", "", re.sub(r"[, ]", "", found[2])) if found else ""
    return (digits, f"{found[1]}#{found[3].strip()}") if found else None


def is_year_like(digits: str) -> bool:
    return re.fullmatch(r"(?:1\d{3}|20\d\d|2100)(?:\.0)?", digits) is not None


def is_within_5_percent(reference: Fraction, prediction: Fraction) -> bool:
    """Relaxed accuracy (PlotQA, WACV 2020; ChartQA, ACL 2022), of the reference, without rounding."""
    return abs(prediction - reference) * 20 <= abs(reference)


def with_digits(text: str) -> str:
    """`twenty-one dots` -> `21 dots`, `third floor` -> `3rd floor`; `the red one` stays. Up to 99."""

    def digits(found: re.Match[str]) -> str:
        tens, _, ones = found[0].lower().partition("-")
        return str(int(_WORDS[tens]) + int(_WORDS[ones])) if ones else _WORDS.get(tens, found[0])

    tens, ones = "|".join([*_WORDS][20:28]), "|".join([*_WORDS][:9])
    return re.sub(rf"(?<!\d )\b(?:(?:{tens})-(?:{ones})|[a-z]{{3,9}})\b(?<!\w one)", digits, text, flags=re.IGNORECASE)


def read_amount(text: str) -> Amount | None:
    """An amount with its currency or unit; None where the text says more, or something else."""
    if len(text) > 80 or (found := _AMOUNT.fullmatch(text)) is None:
        return None
    if found["over"]:
        value = Fraction(int(found["over"]), int(found["under"])) + int(found["whole"] or 0)
    else:
        value = Fraction(re.sub(r"[, ]", "", found["plain"])) * Fraction(10) ** int(found["power"] or found["e"] or 0)
    sign, words = (found["sign"] or "").lower(), found["rest"].split()
    may_be_sign = sign or (found["rest"][:1].isupper() and len(words) == 1)
    while words and (scale := SCALES.get(words[0].lower()) or (may_be_sign and _SIGNS.get(words[0]))):
        value, words = value * scale, words[1:]
    if words == ["cents"]:
        value, sign, words = value / 100, "$", []
    elif (named := " ".join(words).lower()) in CURRENCIES:
        sign, words = named, []
    value = -value if found["minus"] or found["minus2"] else value
    unit = re.sub(r"^per ?cent$", "%", " ".join(words))
    return Amount(value=value, currency=CURRENCIES.get(sign, ""), unit=unit) if len(words) <= 3 else None


def definite_date(text: str) -> date | None:
    """A date that can be read in one way only: ISO, or the month named, with day and year of four digits."""
    try:
        return parser.parse(text).date() if _DEFINITE.fullmatch(text) else None
    except (ValueError, OverflowError):
        return None


def same_date(question: str, reference: str, prediction: str) -> bool | None:
    """A guess whether two texts are the same date or time of day; None where one of them is neither."""
    is_time = re.search(r"\b(?:time|clock|when|hour)\b", question.casefold())
    texts, blank = (reference[:40], prediction[:40]), datetime(2000, 1, 1)
    if not all(_DATE_LIKE.search(text) or (is_time and _CLOCK.search(text)) for text in texts):
        return None
    dates = [found[0] for found in _DEFINITE.finditer(prediction)] if definite_date(reference) else []
    if len(dates) == 1 and " not " not in prediction:
        texts = (texts[0], dates[0])
    try:
        # 05/03/2020 may be in March or in May; an ISO date is in one of them for everybody.
        sides = [
            {parser.parse(text, default=blank, dayfirst=first) for first in (False, not re.match(r"\d{4}", text))}
            for text in texts
        ]
    except (ValueError, OverflowError, TypeError):
        return None
    return not sides[0].isdisjoint(sides[1])
