"""The best guess of rules that stand last: which way an answer leans where nothing is certain."""

from __future__ import annotations

import re
from collections import Counter
from functools import partial

from rapidfuzz import fuzz

from judge.rules.amounts import CURRENCIES, Amount, is_within_5_percent, is_year_like, read_amount, with_digits
from judge.rules.asked import DIFFERENCE, FALL, LABEL, ORDERED, YEAR, says
from judge.rules.dates import same_date
from judge.rules.options import letter_of, likely_options, read_options
from judge.rules.text import bare, boxed_answer, case_matters, loose, strip_latex
from judge.rules.units import read_unit, same_quantity

SIMILAR = 92.0
"""Percent of like characters at which a longer text counts as misspelt rather than as another one."""
_YES_NO = {"yes": True, "yeah": True, "true": True, "no": False, "nope": False, "false": False}
_POLAR = re.compile(r"(yes|no|true|false)(?:[,.;:!-].*)?", re.IGNORECASE | re.DOTALL)
_DENIAL = re.compile(r"\b(?:not|never|no|cannot|without|\w+n't|neither|nor|incorrect|wrong|false|unknown|unsure)\b")
_FILLERS = frozenset(
    re.findall(
        r"\w+",
        "it its is are was were be been this that these those there here i think of in on at to by for with and as a an "
        "he she they we you has have had does do did shown seen picture image chart called about the answer so than one",
    )
)
_BRACKETS = re.compile(r"([(\[{])(.*)([)\]}])", re.DOTALL)
_BETWEEN_ITEMS = re.compile(r"[;\n]|,(?!\d{3}(?!\d))|,? and (?!\d+/)|(?<=\S) (?=\d\. )")
_INITIALS = re.compile(r"(?<=\b[a-z])[. ](?=[a-z]\b)")
_PLURAL_OR_ASIDE = re.compile(r"(?:es|s)\b| ?\([^)]*\)")


def is_likely_right(question: str, reference: str, prediction: str, *, is_relaxed: bool) -> bool:
    """Whether the prediction probably says what the reference says. No certainty in it."""
    sides = [boxed_answer(text) for text in (reference, prediction)]
    if not sides[1]:
        return False
    expected, given = (with_digits(strip_latex(bare(side or reference))) for side in sides)
    options = {letter: strip_latex(text) for letter, text in read_options(question).items()}
    if options or letter_of(expected):
        chosen = [likely_options(options, text, partial(_same, question)) for text in (expected, given)]
        if letter_of(expected) or None not in chosen:
            return bool(chosen[1]) and chosen[0] == chosen[1]
    return _same(question, expected, given, is_relaxed=is_relaxed)


def _same(question: str, reference: str, prediction: str, *, is_relaxed: bool = False) -> bool:
    one, other = loose(reference), loose(prediction)
    if one == other:
        return prediction.islower() or not case_matters(reference, prediction, max_chars=5)
    if (is_date := same_date(question, reference, prediction)) is not None:
        return is_date
    # `3.10`, `007`, `2E3` name something; whole numbers are the same however they are written.
    if says(question, LABEL) and re.fullmatch(r"(?!0$|[1-9]\d*$)[\w.:/-]*\d[\w.:/-]*", one):
        return _restates(question, one, other)
    if ("=" in reference) != ("=" in prediction):
        reference, prediction = (_value(question, text) for text in (reference, prediction))
    for found in (
        _same_amount(question, reference, prediction, is_relaxed=is_relaxed),
        _same_polarity(question, reference, other),
        _same_items(question, reference, prediction),
    ):
        if found is not None:
            return found
    return _same_words(one, other) or _restates(question, one, other)


def _value(question: str, text: str) -> str:
    """`x = 12` -> `12` where the question asks for x."""
    found = re.fullmatch(r"([A-Za-z]) ?= ?(.+)", text)
    return found[2] if found and re.search(rf"(?<!\w){found[1]}(?!\w)", question) else text


def _same_amount(question: str, reference: str, prediction: str, *, is_relaxed: bool) -> bool | None:
    if says(question, FALL):
        reference, prediction = (re.sub(r"^(?:-|minus |negative )", "", text) for text in (reference, prediction))
    as_difference = partial(same_quantity, is_difference=says(question, DIFFERENCE))
    same = as_difference(reference, prediction)
    one, other = read_amount(reference), read_amount(prediction)
    if one is None or other is None:
        return same
    if same is None and one.unit and other.unit:
        same = as_difference(_quantity(one, one.unit), _quantity(other, other.unit))
    if same is not None:
        return same
    named = {one.currency} - {""} or {
        CURRENCIES[word] for word in re.findall(r"\w+", question.casefold()) if word in CURRENCIES
    }
    if other.currency and named and other.currency not in named:
        return False
    is_exact = any(says(question, kind) for kind in (YEAR, LABEL)) or is_year_like(reference)
    is_same = _is_equal(one, other) or (is_relaxed and not is_exact and is_within_5_percent(one.value, other.value))
    if one.unit != other.unit and "%" in (one.unit, other.unit):
        # 12 % is 0.12, and `12` may leave the sign out; 0.5 is not 0.5 %, and 0.12 no percentage.
        percent, plain = (one, other) if one.unit == "%" else (other, one)
        is_asked = re.search(r"percent|%", question.casefold())
        is_hundredth = percent.value == plain.value * 100 and not is_asked
        return not plain.unit and (is_hundredth or (is_same and (one is percent or bool(is_asked))))
    if other.unit and not one.unit:
        return _same_with_unit(question, one, other, is_same)
    return is_same and (not (one.unit and other.unit) or _stems(one.unit) == _stems(other.unit))


def _is_equal(one: Amount, other: Amount) -> bool:
    """The same value; a decimal of two or more places may round a fraction."""
    places = max(one.places or 0, other.places or 0) if (one.places is None) != (other.places is None) else 0
    return one.value == other.value or (places >= 2 and abs(one.value - other.value) * 2 * 10**places <= 1)


def _same_with_unit(question: str, one: Amount, other: Amount, is_same: bool) -> bool:
    """The prediction alone has a unit: the question may name another one, or say what is counted."""
    words = question.casefold()
    for named in re.findall(r"(?:\bin|how many|\(unit:|\() ?([a-z°]{2,}(?: per \w+|/\w+)?|[mgsl]\b)", words):
        if read_unit(named) is not None and read_unit(other.unit) is not None:
            return same_quantity(_quantity(one, named), _quantity(other, other.unit)) is True
    _, how_many, behind = words.rpartition("how many")
    counted = re.split(r"\b(?:is|are|was|were|do|does|did|can|have|has|had|in|on|at|sit|stand)\b", behind)[0]
    if _stems(other.unit) & _stems(counted):
        return is_same
    return is_same and not how_many and read_unit(other.unit) is not None


def _quantity(amount: Amount, unit: str) -> str:
    return f"{float(amount.value):.12g} {unit}"


def _stems(text: str) -> set[str]:
    return {_PLURAL_OR_ASIDE.sub("", word) for word in loose(text).split()}


def _same_polarity(question: str, reference: str, other: str) -> bool | None:
    """A reference that says yes or no, and what the prediction says, a contradiction or a swap included."""
    polar = _POLAR.fullmatch(reference)
    if polar is None:
        return None
    expected, words = _YES_NO[polar[1].lower()], question.casefold()
    first, _, rest = other.partition(" ")
    said, asked_for = re.findall(r"\w+", other), re.findall(r"\w+", words)
    if first not in _YES_NO:
        is_denied = bool(_DENIAL.search(other)) != ("not" in asked_for)
        return bool(rest and {*said} & {*asked_for} - _FILLERS) and is_denied != expected and "or" not in said
    if re.search(r"\b(?:or|but|yes|cannot|unsure|maybe)\b", rest) or (_YES_NO[first] and _DENIAL.search(rest)):
        return False
    # `yes, the red one is taller` of `is the blue one taller than the red one?`
    left = iter(asked_for)
    is_swapped = _YES_NO[first] and not all(word in left for word in said if word in {*asked_for} - _FILLERS)
    return _YES_NO[first] == expected and not is_swapped


def _same_items(question: str, reference: str, prediction: str) -> bool | None:
    brackets = [_BRACKETS.fullmatch(text) for text in (reference, prediction)]
    expected, given = (
        [re.sub(r"^(?:\d{1,2}[.)]|[-•*]) ", "", part.strip()) for part in _BETWEEN_ITEMS.split(text) if part.strip()]
        for text in (found[2] if found else text for found, text in zip(brackets, (reference, prediction), strict=True))
    )
    if len(expected) < 2:
        return None
    marks = [found[1] + found[3] if found else "" for found in brackets]
    if len(expected) != len(given) or (all(marks) and marks[0] != marks[1]):
        return False
    if marks[0] not in ("", "{}") or says(question, ORDERED):
        return all(map(partial(_same, ""), expected, given))
    if Counter(map(loose, expected)) == Counter(map(loose, given)):
        return True
    for item in expected if len(expected) <= 12 else ():
        given = next((given[:at] + given[at + 1 :] for at, mate in enumerate(given) if _same("", item, mate)), given)
    return not given


def _same_words(one: str, other: str) -> bool:
    if any(pattern.sub("", one) == pattern.sub("", other) for pattern in (_INITIALS, _PLURAL_OR_ASIDE)):
        return len(one) > 2
    digits = [re.findall(r"\d", text) for text in (one, other)]
    if re.fullmatch(r"(?:[\d().+/-]|\s){7,}", one):
        return digits[0] == digits[1] and len(one) - len(other) < 5
    signs = [re.findall(r"\d+|[^\w\s]", text) + [bool(_DENIAL.search(text))] for text in (one, other)]
    is_turned = set(one.split()) == set(other.split())
    return len(one) >= 9 and signs[0] == signs[1] and not is_turned and fuzz.ratio(one, other) >= SIMILAR


def _restates(question: str, one: str, other: str) -> bool:
    """A sentence that says the reference in the words of the question and adds nothing."""
    before, found, behind = (f" {other} ").partition(f" {one} ")
    if not found or re.search(r"\b(?:of|than|from|to|by|over|beats?)$", before):
        return False
    words, extra = question.casefold(), {*before.split(), *behind.split()} - _FILLERS
    # Where the question itself names the reference, it has to be what the sentence is about.
    is_subject = one not in words or not {*before.split()} - _FILLERS
    return is_subject and extra <= set(re.findall(r"[\w']+", words)) and not _DENIAL.search(" ".join(extra))
