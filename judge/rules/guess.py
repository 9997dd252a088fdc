"""The best guess of rules that stand last: which way an answer leans where nothing is certain."""

from __future__ import annotations

import re
from collections import Counter
from functools import partial

from rapidfuzz import fuzz

from judge.rules import asked
from judge.rules.amounts import RELAXED_TOLERANCE, Amount, is_close, is_equal, is_year_like, read_amount, with_digits
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
    "it its is are was were be been this that these those there here i think believe of in on at to by for with and as "
    "he she they we you has have had does do did shown seen picture image chart called about the a an answer so than one".split()
)
_BRACKETS = re.compile(r"([(\[{])(.*)([)\]}])", re.DOTALL)
_BETWEEN_ITEMS = re.compile(r"[;\n]|,(?!\d{3}(?!\d))|,? and (?!\d+/)|(?<=\S) (?=\d\. )")


def is_likely_right(question: str, reference: str, prediction: str, *, is_relaxed: bool) -> bool:
    """Whether the prediction probably says what the reference says. No certainty in it."""
    sides = [boxed_answer(text) for text in (reference, prediction)]
    if not sides[1]:
        return False
    expected, given = (with_digits(strip_latex(bare(side or reference))) for side in sides)
    options = {letter: strip_latex(text) for letter, text in read_options(question).items()}
    if options or letter_of(expected):
        same = partial(_same, question, is_relaxed=False)
        chosen = [likely_options(options, text, same) for text in (expected, given)]
        if letter_of(expected) or None not in chosen:
            return bool(chosen[1]) and chosen[0] == chosen[1]
    return _same(question, expected, given, is_relaxed=is_relaxed)


def _same(question: str, reference: str, prediction: str, *, is_relaxed: bool = False) -> bool:
    one, other = loose(reference), loose(prediction)
    if one == other:
        return prediction.islower() or not case_matters(reference, prediction, max_chars=5)
    if (is_date := same_date(question, reference, prediction)) is not None:
        return is_date
    if asked.says(question, asked.LABEL) and re.fullmatch(r"(?!0$|[1-9]\d*$)[\w.:/-]*\d[\w.:/-]*", one):
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
    return _same_words(question, one, other)


def _value(question: str, text: str) -> str:
    """`x = 12` -> `12` where the question asks for x."""
    found = re.fullmatch(r"([A-Za-z]) ?= ?(.+)", text)
    return found[2] if found and re.search(rf"(?<!\w){found[1]}(?!\w)", question) else text


def _same_amount(question: str, reference: str, prediction: str, *, is_relaxed: bool) -> bool | None:
    if asked.says(question, asked.FALL):
        reference, prediction = (re.sub(r"^(?:-|minus |negative )", "", text) for text in (reference, prediction))
    is_difference = asked.says(question, asked.DIFFERENCE)
    same = same_quantity(reference, prediction, is_difference=is_difference)
    one, other = read_amount(reference), read_amount(prediction)
    if one is None or other is None:
        return same
    if same is None and one.unit and other.unit:
        same = same_quantity(_quantity(one, one.unit), _quantity(other, other.unit), is_difference=is_difference)
    if same is not None:
        return same
    if one.currency != other.currency and one.currency and other.currency:
        return False
    may_miss = is_relaxed and not (asked.says(question, asked.YEAR) or asked.says(question, asked.LABEL))
    may_miss &= not is_year_like(reference)
    is_same = is_equal(one, other) or (may_miss and is_close(one.value, other.value, RELAXED_TOLERANCE))
    if one.unit != other.unit and "%" in (one.unit, other.unit):
        if re.search(r"percent|%", question.casefold()) or {one.unit, other.unit} != {"", "%"}:
            return is_same and "" in (one.unit, other.unit)
        # 12 % is 0.12, and `12` may leave the sign out; 0.5 is not 0.5 %.
        percent, plain = (one, other) if one.unit == "%" else (other, one)
        return percent.value == plain.value * 100 or (is_same and one is percent)
    if other.unit and not one.unit:
        return _same_with_unit(question, one, other, is_same)
    return is_same and (not (one.unit and other.unit) or _stems(one.unit) == _stems(other.unit))


def _same_with_unit(question: str, one: Amount, other: Amount, is_same: bool) -> bool:
    """The prediction alone has a unit: the question may name another one, or say what is counted."""
    words = question.casefold()
    for named in re.findall(r"(?:\bin|how many|\(unit:|\() ?([a-z°]{2,}(?: per \w+|/\w+)?|[mgsl]\b)", words):
        if read_unit(named) is not None and read_unit(other.unit) is not None:
            sides = _quantity(one, named), _quantity(other, other.unit)
            return bool(same_quantity(*sides, is_difference=False))
    before, how_many, behind = words.rpartition("how many")
    counted = re.split(r"\b(?:is|are|was|were|do|does|did|can|have|has|had|in|on|at|sit|stand)\b", behind or before)[0]
    if _stems(other.unit) & _stems(counted):
        return is_same
    return is_same and not how_many and read_unit(other.unit) is not None


def _quantity(amount: Amount, unit: str) -> str:
    return f"{float(amount.value):.12g} {unit}"


def _stems(text: str) -> set[str]:
    return {re.sub(r"(?:es|s)$", "", word) for word in loose(text).split()}


def _same_polarity(question: str, reference: str, other: str) -> bool | None:
    """A reference that says yes or no, and what the prediction says, a contradiction or a swap included."""
    polar = _POLAR.fullmatch(reference)
    if polar is None:
        return None
    expected, words = _YES_NO[polar[1].lower()], question.casefold()
    first, _, rest = other.partition(" ")
    given = _YES_NO.get(first)
    if given is None:
        is_denied = bool(_DENIAL.search(other)) != bool(re.search(r"\bnot\b", words))
        is_about_it = (set(re.findall(r"\w+", other)) & set(re.findall(r"\w+", words))) - _FILLERS
        return bool(is_about_it) and " " in other and is_denied != expected and " or " not in other
    if re.search(r"\b(?:or|but|yes|cannot|unsure|maybe)\b", rest) or (given and _DENIAL.search(rest)):
        return False
    # `yes, the red one is taller` of `is the blue one taller than the red one?`
    said = iter(re.findall(r"\w+", words))
    named = (word for word in re.findall(r"\w+", rest) if word in words and word not in _FILLERS)
    is_swapped = given and not all(word in said for word in named)
    return given == expected and not is_swapped


def _same_items(question: str, reference: str, prediction: str) -> bool | None:
    brackets = [_BRACKETS.fullmatch(text) for text in (reference, prediction)]
    texts = [found[2] if found else text for found, text in zip(brackets, (reference, prediction), strict=True)]
    expected, given = (
        [re.sub(r"^(?:\d{1,2}[.)]|[-•*]) ", "", part.strip()) for part in _BETWEEN_ITEMS.split(text) if part.strip()]
        for text in texts
    )
    if len(expected) < 2:
        return None
    marks = [found[1] + found[3] if found else "" for found in brackets]
    if len(expected) != len(given) or (all(marks) and marks[0] != marks[1]):
        return False
    if marks[0] not in ("", "{}") or asked.says(question, asked.ORDERED):
        return all(map(partial(_same, ""), expected, given))
    if Counter(map(loose, expected)) == Counter(map(loose, given)):
        return True
    left = list(given)
    for item in expected if len(expected) <= 12 else ():
        if (mate := next((mate for mate in left if _same("", item, mate)), None)) is None:
            return False
        left.remove(mate)
    return not left


def _same_words(question: str, one: str, other: str) -> bool:
    if re.sub(r"(?:es|s)\b| ?\([^)]*\)", "", one) == re.sub(r"(?:es|s)\b| ?\([^)]*\)", "", other) and len(one) > 2:
        return True
    if re.sub(r"(?<=\b[a-z])[. ](?=[a-z]\b)", "", one) == re.sub(r"(?<=\b[a-z])[. ](?=[a-z]\b)", "", other):
        return True
    if re.fullmatch(r"(?:[\d().+/-]|\s){7,}", one) and re.findall(r"\d", one) == re.findall(r"\d", other):
        return len(one) - len(other) < 5
    if min(len(one), len(other)) >= 9 and re.findall(r"\d+|[^\w\s]", one) == re.findall(r"\d+|[^\w\s]", other):
        is_denied = bool(_DENIAL.search(one)) != bool(_DENIAL.search(other))
        is_turned = set(one.split()) == set(other.split())
        if fuzz.ratio(one, other) >= SIMILAR and not is_denied and not is_turned:
            return True
    return _restates(question, one, other)


def _restates(question: str, one: str, other: str) -> bool:
    """A sentence that says the reference in the words of the question and adds nothing."""
    found = re.search(rf"(?:^|(?<=\s)){re.escape(one)}(?=\s|$)", other) if one else None
    if found is None or re.search(r"\b(?:of|than|from|to|by|over|beat|beats) $", other[: found.start()]):
        return False
    before, words = other[: found.start()], question.casefold()
    extra = set(re.findall(r"[^\s]+", f"{before} {other[found.end() :]}")) - _FILLERS
    # Where the question itself names the reference, it has to be what the sentence is about.
    is_subject = one not in words or not set(before.split()) - _FILLERS
    return is_subject and extra <= set(re.findall(r"[\w']+", words)) and not _DENIAL.search(" ".join(extra))
