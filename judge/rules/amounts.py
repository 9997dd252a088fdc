"""Numbers: the same as written (certain), and amounts in the ways people write them (for guesses)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

PLAIN = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,3}(?: \d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?"
_ONE_NUMBER = re.compile(rf"([$€£¥₹]?[-+]?)(?!0\d)({PLAIN})( ?%|(?: [^\W\d_]+){{0,3}})")
_ONES = re.findall(
    r"\w+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen",
)
_TENS = re.findall(r"\w+", "twenty thirty forty fifty sixty seventy eighty ninety")
_ORDINALS = re.findall(r"\w+", "first second third fourth fifth sixth seventh eighth ninth tenth")
_DIGITS = (
    {word: str(at) for at, word in enumerate(_ONES)}
    | {word: str(10 * at) for at, word in enumerate(_TENS, 2)}
    | {word: f"{at}{('st', 'nd', 'rd', 'th')[min(at, 4) - 1]}" for at, word in enumerate(_ORDINALS, 1)}
    | {f"{tens}-{one}": str(10 * at + _ONES.index(one)) for at, tens in enumerate(_TENS, 2) for one in _ONES[1:10]}
)
_NUMERAL = re.compile(rf"(?<!\d )\b(?:{'|'.join(sorted(_DIGITS, key=len, reverse=True))})\b(?<!\w one)", re.IGNORECASE)
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_SCALE_SIGNS = {"k": 10**3, "K": 10**3, "m": 10**6, "M": 10**6, "bn": 10**9, "b": 10**9, "B": 10**9}
CURRENCIES = {
    name: sign
    for sign, names in {"$": "usd|us$|dollars|dollar", "€": "eur|euros|euro", "£": "gbp", "¥": "jpy|yen"}.items()
    for name in (sign, *names.split("|"))
}
_AMOUNT = re.compile(
    r"(?:(?:about|approximately|around|roughly|exactly|only|just) |[~≈] ?)?"
    r"(?P<minus>-|minus |negative )?\+?(?P<sign>US\$|[$€£¥])? ?(?P<minus2>-)?"
    rf"(?:(?:(?P<whole>\d+) )?(?P<over>\d+) ?/ ?(?P<under>[1-9]\d*)|(?P<plain>{PLAIN}|\.\d+)"
    r"(?: ?[×x*] ?10\^?\{?(?P<power>-?\d\d?)\}?|e(?P<e>[-+]?\d\d?))?)(?!\d)"
    r"(?P<rest> ?(?![π√])[^\W\d_][^\d,;:!?π√=()+]{0,40}(?:\^?[23])?| ?[%°'\"][^\d,;:!?]{0,20}|)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    value: Fraction
    places: int | None
    """Digits behind the point as written; None where the value is written otherwise."""
    currency: str
    unit: str
    """What else is said behind the number, `%` included."""


def one_number(text: str) -> tuple[str, str] | None:
    """(digits, what stands around them) of a text with one plain number, such as `$1,200.00` or `5 km`.

    Without grouping marks and a trailing .0; None of `007`, `2E3`, `3/4`, `v2`.
    """
    if (found := _ONE_NUMBER.fullmatch(text)) is None:
        return None
    return re.sub(r"\.0{1,2}$", "", re.sub(r"[, ]", "", found[2])), f"{found[1]}#{found[3].strip()}"


def is_year_like(digits: str) -> bool:
    return re.fullmatch(r"(?:1\d{3}|20\d\d|2100)(?:\.0)?", digits) is not None


def is_within_5_percent(reference: Fraction, prediction: Fraction) -> bool:
    """Relaxed accuracy (PlotQA, WACV 2020; ChartQA, ACL 2022), of the reference, without rounding."""
    return abs(prediction - reference) * 20 <= abs(reference)


def with_digits(text: str) -> str:
    """`twenty-one dots` -> `21 dots`, `third floor` -> `3rd floor`; `the red one` stays."""
    return _NUMERAL.sub(lambda word: _DIGITS[word[0].lower()], text)


def read_amount(text: str) -> Amount | None:
    """An amount with its currency or unit; None where the text says more, or something else."""
    found = _AMOUNT.fullmatch(re.sub(r"\bper ?cent\b", "%", text)) if len(text) <= 80 else None
    if found is None:
        return None
    if found["over"]:
        value, places = Fraction(int(found["over"]), int(found["under"])) + int(found["whole"] or 0), None
    else:
        plain = re.sub(r"[, ]", "", found["plain"])
        places = len(plain.partition(".")[2])
        value = Fraction(plain) * Fraction(10) ** int(found["power"] or found["e"] or 0)
    sign, words = (found["sign"] or "").lower(), found["rest"].split()
    may_be_sign = sign or (found["rest"][:1].isupper() and len(words) == 1)
    while words and (scale := _SCALES.get(words[0].lower()) or (may_be_sign and _SCALE_SIGNS.get(words[0]))):
        value, places, words = value * scale, None, words[1:]
    if words == ["cents"]:
        value, sign, words = value / 100, "$", []
    elif named := CURRENCIES.get(" ".join(words).lower()):
        sign, words = named, []
    value = -value if found["minus"] or found["minus2"] else value
    amount = Amount(value=value, places=places, currency=CURRENCIES.get(sign, ""), unit=" ".join(words))
    return amount if len(words) <= 3 else None
