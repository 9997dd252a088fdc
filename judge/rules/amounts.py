"""Numbers: the same as written (certain), and amounts in the ways people write them (for guesses)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from judge.rules.text import strip_latex

PLAIN = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,3}(?: \d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?"
RELAXED_TOLERANCE = Fraction(1, 20)
"""Relaxed accuracy (PlotQA, Methani et al., WACV 2020; ChartQA, Masry et al., ACL 2022): |p - r| <= 0.05 |r|."""
MAX_DIGITS = 40

_ONE_NUMBER = re.compile(rf"([$€£¥₹]?[-+]?)({PLAIN})( ?%|(?: [^\W\d_]+){{0,3}})")
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_WORDS = {word: at for at, word in enumerate(_SMALL)} | {word: 10 * at for at, word in enumerate(_TENS, 2)}
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_SCALE_SIGNS = {"k": 10**3, "mn": 10**6, "m": 10**6, "bn": 10**9, "b": 10**9}
_CURRENCIES = {"$": "$ usd us$ dollar dollars", "€": "€ eur euro euros", "£": "£ gbp", "¥": "¥ yen jpy", "₹": "₹ inr"}
_CURRENCY = {name: sign for sign, names in _CURRENCIES.items() for name in names.split()} | {"rupees": "₹"}
_ABOUT = r"(?:(?:about|approximately|approx\.?|around|roughly|exactly|only|just)\s+|[~≈]\s*)?"
_AMOUNT = re.compile(
    rf"{_ABOUT}(?P<minus>-|minus |negative |\+)?\s*(?P<sign>US\$|[$€£¥₹])?\s*(?P<minus2>-)?\s*"
    rf"(?:(?P<whole>\d+) )?(?:(?P<over>\d+) ?/ ?(?P<under>\d+)|(?P<plain>{PLAIN}|\.\d+)"
    r"(?: ?[×x*] ?10\^?\{?(?P<power>-?\d{1,2})\}?|e(?P<e>[-+]?\d{1,2}))?)(?!\d)(?P<rest>[^\d].*|)",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    value: Fraction
    places: int | None
    """Digits behind the point as written; None where the value is written as a fraction or in words."""
    currency: str
    unit: str
    """What else is said behind the number, `%` included."""


def plain_number(text: str) -> str | None:
    """Digits of a plain number without grouping marks and a trailing .0; None of `007`, `2E3`, `3/4`, `v2`."""
    if not re.fullmatch(PLAIN, text):
        return None
    digits = re.sub(r"[, ]", "", text)
    return None if re.match(r"0\d", digits) else re.sub(r"\.0{1,2}$", "", digits)


def one_number(text: str) -> tuple[str, str] | None:
    """(digits, what stands around them) of a text with one plain number in it."""
    found = _ONE_NUMBER.fullmatch(text)
    digits = plain_number(found[2]) if found else None
    return (digits, f"{found[1]}#{found[3].strip()}") if found and digits is not None else None


def is_year_like(digits: str) -> bool:
    return re.fullmatch(r"1\d{3}|20\d\d|2100", digits) is not None


def read_amount(text: str) -> Amount | None:
    """An amount with its currency or unit; None where the text says more, or something else."""
    text = re.sub(r"\bper ?cent\b", "%", strip_latex(text))
    found = _AMOUNT.fullmatch(text)
    if found is None or len(text) > MAX_DIGITS + 40 or (found["under"] and int(found["under"]) == 0):
        return _from_words(text)
    if found["whole"] and not found["over"]:
        return None
    if found["over"]:
        value, places = Fraction(int(found["over"]), int(found["under"])) + int(found["whole"] or 0), None
    else:
        plain = re.sub(r"[, ]", "", found["plain"])
        value, places = Fraction(plain), len(plain.partition(".")[2])
        value *= Fraction(10) ** int(found["power"] or found["e"] or 0)
    sign = -1 if (found["minus"] or "+").strip() != "+" or found["minus2"] else 1
    return _with_rest(sign * value, places, (found["sign"] or "").lower(), found["rest"])


def _with_rest(value: Fraction, places: int | None, currency: str, rest: str) -> Amount | None:
    is_glued, words = rest[:1].isalpha(), rest.split()
    while words and ((word := words[0].casefold()) in _SCALES or (word in _SCALE_SIGNS and (currency or is_glued))):
        if word == "m" and not currency and words[0] == "m":
            break
        value, places, words = value * (_SCALES.get(word) or _SCALE_SIGNS[word]), None, words[1:]
    if words and (sign := _CURRENCY.get(" ".join(words).casefold())):
        currency, words = sign, []
    if words == ["cents"]:
        value, currency, words = value / 100, "$", []
    is_clean = all(re.fullmatch(r"[^\W\d_.]*[^\s\d]{0,3}[\w²³^/.*'\"-]*", word) for word in words) and len(words) <= 4
    return Amount(value=value, places=places, currency=_CURRENCY.get(currency, currency), unit=" ".join(words)) if (
        is_clean
    ) else None


def _from_words(text: str) -> Amount | None:
    words = re.sub(r"(?<=[a-z])-(?=[a-z])", " ", text).split()
    sign = -1 if words and words[0].casefold() in ("minus", "negative") else 1
    words = words[1:] if sign < 0 else words
    total, group, num_read = 0, 0, 0
    for word in map(str.casefold, words):
        if word in _WORDS:
            group += _WORDS[word]
        elif word in ("a", "an") and num_read == 0 and words[1:] and words[1].casefold() in _SCALES:
            group = 1
        elif word in _SCALES and num_read:
            scale = _SCALES[word]
            total, group = (total, group * scale) if scale < 1000 else (total + (group or 1) * scale, 0)
        elif word != "and" or num_read == 0:
            break
        num_read += 1
    if num_read == 0:
        return None
    return _with_rest(Fraction(sign * (total + group)), None, "", " ".join(words[num_read:]))


def is_close(reference: Fraction, prediction: Fraction, tolerance: Fraction) -> bool:
    """|prediction - reference| <= tolerance * |reference|, without rounding."""
    return abs(prediction - reference) <= tolerance * abs(reference)


def is_equal(reference: Amount, prediction: Amount) -> bool:
    """The same value; a decimal of two or more places may round a fraction."""
    if reference.value == prediction.value:
        return True
    one, other = sorted((reference, prediction), key=lambda amount: amount.places is None)
    is_rounded = one.places is not None and one.places >= 2 and other.places is None and not other.unit
    return is_rounded and abs(one.value - other.value) * 2 * 10 ** (one.places or 0) <= 1
