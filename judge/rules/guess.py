"""The best guess of rules that stand last: which way an answer leans where nothing is certain."""

from __future__ import annotations

import re
from functools import partial

from rapidfuzz import fuzz

from judge.rules.amounts import CURRENCIES, Amount, is_within_5_percent, is_year_like, read_amount, with_digits
from judge.rules.asked import DIFFERENCE, FALL, LABEL, ORDERED, READING, YEAR, says
from judge.rules.dates import same_date
from judge.rules.options import letter_of, likely_options, read_options
from judge.rules.text import bare, boxed_answer, case_matters, loose, strip_latex
from judge.rules.units import read_unit, same_quantity

_YES_NO = {"yes": True, "yeah": True, "true": True, "no": False, "nope": False, "false": False}
_POLAR = re.compile(r"(yes|no|true|false)(?:[,.;:!-].*)?", re.IGNORECASE | re.DOTALL)
_DENIAL = re.compile(r"\b(?:not|never|no|cannot|without|\w+n't|neither|nor|incorrect|wrong|false|unknown|unsure)\b")
_FILLERS = frozenset(
    re.findall(
        r"\w+",
        "it its is are was were be this that these those there here i think of in on at to by for with and as a an the "
        "he she they we you has have had does do did shown seen picture image chart called about answer so than one",
    )
)
_BRACKETS = re.compile(r"([(\[{])(.*)([)\]}])", re.DOTALL)
_BETWEEN_ITEMS = re.compile(r"[;\n]|,(?!\d{3}(?!\d))|,? and (?!\d+/)|(?<=\S) (?=\d\. )")
_NOT_THE_WORD = re.compile(r"(?<=\b[a-z])[. ](?=[a-z]\b)|(?<=[a-z]{2})(?:es|s)\b| \([^)]*\)")
"""The dots of initials, a plural, an aside."""


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
    if (says(question, LABEL) or says(question, READING)) and re.fullmatch(
        r"(?!0$|[1-9]\d*$)[\w.:/-]*\d[\w.:/-]*", one
    ):
        return _restates(question, one, other)
    # `x = 12` where the question asks for x.
    named = re.match(r"([A-Za-z]) ?= ?", reference if "=" in reference else prediction)
    if named and ("=" in reference) != ("=" in prediction) and re.search(rf"\b{named[1]}\b", question):
        reference, prediction = (text.removeprefix(named[0]) for text in (reference, prediction))
    for found in (
        _same_amount(question, reference, prediction, is_relaxed),
        _same_polarity(question, reference, other),
        _same_items(question, reference, prediction),
    ):
        if found is not None:
            return found
    return _same_words(one, other) or _restates(question, one, other)


def _same_amount(question: str, reference: str, prediction: str, is_relaxed: bool) -> bool | None:
    if says(question, FALL):
        reference, prediction = (re.sub(r"^(?:-|minus |negative )", "", text) for text in (reference, prediction))
    compare = partial(same_quantity, is_difference=says(question, DIFFERENCE))
    same, one, other = compare(reference, prediction), read_amount(reference), read_amount(prediction)
    if one is None or other is None:
        return same
    if same is None and one.unit and other.unit:
        same = compare(_with_unit(one, one.unit), _with_unit(other, other.unit))
    if same is not None:
        return same
    words = question.casefold()
    named = {one.currency} - {""} or {CURRENCIES[word] for word in re.findall(r"\w+", words) if word in CURRENCIES}
    if other.currency and named and other.currency not in named:
        return False
    is_exact = says(question, YEAR) or says(question, LABEL) or is_year_like(reference)
    is_same = _is_equal(one, other) or (is_relaxed and not is_exact and is_within_5_percent(one.value, other.value))
    if one.unit != other.unit and "%" in (one.unit, other.unit):
        # 12 % is 0.12, and `12` may leave the sign out; 0.5 is not 0.5 %, and 0.12 no percentage.
        percent, plain = (one, other) if one.unit == "%" else (other, one)
        is_asked = re.search(r"percent|%", words) is not None
        is_hundredth = percent.value == plain.value * 100 and not is_asked
        return not plain.unit and (is_hundredth or (is_same and (one is percent or is_asked or plain.value > 1)))
    if other.unit and not one.unit:
        return _same_with_unit(words, one, other, is_same)
    return is_same and (not (one.unit and other.unit) or _stems(one.unit) == _stems(other.unit))


def _is_equal(one: Amount, other: Amount) -> bool:
    """The same value; a decimal of two or more places may round a fraction."""
    places = max(one.places or 0, other.places or 0) if (one.places is None) != (other.places is None) else 0
    return one.value == other.value or (places >= 2 and abs(one.value - other.value) * 2 * 10**places <= 1)


def _same_with_unit(question: str, one: Amount, other: Amount, is_same: bool) -> bool:
    """The prediction alone has a unit: the question may name another one, or say what is counted."""
    for named in re.findall(r"(?:\bin|how many|\(unit:|\() ?([a-z°]{2,}(?: per \w+|/\w+)?|[mgsl]\b)", question):
        if read_unit(named) is not None and read_unit(other.unit) is not None:
            return same_quantity(_with_unit(one, named), _with_unit(other, other.unit)) is True
    _, how_many, behind = question.rpartition("how many")
    counted = re.split(r"\b(?:is|are|was|were|do|does|did|can|have|has|had|in|on|at|sit|stand)\b", behind)[0]
    is_counted = bool(_stems(other.unit) & _stems(counted))
    return is_same and (is_counted or (not how_many and read_unit(other.unit) is not None))


def _with_unit(amount: Amount, unit: str) -> str:
    return f"{float(amount.value):.12g} {unit}"


def _stems(text: str) -> set[str]:
    return {_NOT_THE_WORD.sub("", word) for word in loose(text).split()}


def _same_polarity(question: str, reference: str, other: str) -> bool | None:
    """A reference that says yes or no, and what the prediction says, a contradiction or a swap included."""
    if (polar := _POLAR.fullmatch(reference)) is None:
        return None
    said, asked_for = re.findall(r"\w+", other), re.findall(r"\w+", question.casefold())
    expected, shared = _YES_NO[polar[1].lower()], [word for word in said if word in {*asked_for} - _FILLERS]
    first, _, rest = other.partition(" ")
    if (given := _YES_NO.get(first)) is None:
        is_denied = bool(_DENIAL.search(other)) != ("not" in asked_for)
        return bool(rest and shared) and is_denied != expected and "or" not in said
    if re.search(r"\b(?:or|but|yes|cannot|unsure|maybe)\b", rest) or (given and _DENIAL.search(rest)):
        return False
    # `yes, the red one is taller` of `is the blue one taller than the red one?`
    left = iter(asked_for)
    return given == expected and not (given and not all(word in left for word in shared))


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
    if len(expected) > 12:
        return sorted(map(loose, expected)) == sorted(map(loose, given))
    for item in expected:
        at = next((at for at, mate in enumerate(given) if _same("", item, mate)), len(given))
        del given[at : at + 1]
    return not given


def _same_words(one: str, other: str) -> bool:
    if _NOT_THE_WORD.sub("", one) == _NOT_THE_WORD.sub("", other):
        return True
    if re.fullmatch(r"(?:[\d().+/-]|\s){7,}", one):
        return re.findall(r"\d", one) == re.findall(r"\d", other) and len(one) - len(other) < 5
    signs = [[*re.findall(r"\d+|[^\w\s]", text), bool(_DENIAL.search(text))] for text in (one, other)]
    is_turned = set(one.split()) == set(other.split())
    return len(one) >= 9 and signs[0] == signs[1] and not is_turned and fuzz.ratio(one, other) >= 92


def _restates(question: str, one: str, other: str) -> bool:
    """A sentence that says the reference in the words of the question and adds nothing."""
    before, found, behind = (f" {other} ").partition(f" {one} ")
    words, extra = question.casefold(), {*before.split(), *behind.split()} - _FILLERS
    if not found or re.search(r"\b(?:of|than|from|to|by|over|beats?)$", before) or _DENIAL.search(" ".join(extra)):
        return False
    # Where the question itself names the reference, it has to be what the sentence is about.
    is_subject = one not in words or not {*before.split()} - _FILLERS
    return is_subject and extra <= set(re.findall(r"[\w']+", words))
