"""The best guess of rules that stand last: which way an answer leans where nothing is certain."""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction
from functools import partial

from rapidfuzz import fuzz

from judge.rules.amounts import RELAXED_TOLERANCE, Amount, is_close, is_equal, is_year_like, read_amount
from judge.rules.asked import DIFFERENCE, FALL, LABEL, ORDERED, YEAR, counts, says
from judge.rules.dates import same_date
from judge.rules.options import letter_of, likely_options, read_options
from judge.rules.text import bare, boxed_answer, loose, strip_latex
from judge.rules.units import read_unit, same_quantity

SIMILAR = 92.0
"""Percent of like characters at which a longer text counts as misspelt rather than as another one."""
_YES_NO = {"yes": True, "yeah": True, "yep": True, "true": True, "no": False, "nope": False, "false": False}
_DENIAL = re.compile(r"\b(?:not|never|no|cannot|without|\w+n't|neither|nor|incorrect|wrong|false|unknown|unsure)\b")
_FILLERS = frozenset(
    "it its is are was were be been this that these those there here i think believe of in on at to by for with and as "
    "he she they we you has have had does do did shown seen picture image photo chart called named equals about".split()
)
_BRACKET_PAIRS = {"(": ")", "[": "]", "{": "}"}


def is_likely_right(question: str, reference: str, prediction: str, *, is_relaxed: bool) -> bool:
    """Whether the prediction probably says what the reference says. No certainty in it."""
    said = boxed_answer(prediction)
    if said is None or not said.strip():
        return False
    expected, given = bare(boxed_answer(reference) or reference), bare(said)
    same = partial(_same, question, is_relaxed=False)
    options = read_options(question)
    if options or letter_of(expected):
        sides = [likely_options(options, text, same) for text in (expected, given)]
        if sides[0] is not None and sides[1] is not None:
            return bool(sides[1]) and sides[0] == sides[1]
        if letter_of(expected):
            return False
    return _same(question, expected, given, is_relaxed=is_relaxed)


def _same(question: str, reference: str, prediction: str, *, is_relaxed: bool) -> bool:
    one, other = loose(reference), loose(prediction)
    if one == other:
        return not _differs_in_case(reference, prediction)
    if says(question, LABEL) and re.fullmatch(r"[\d.\-/ ]+", one) and re.search(r"\d", other):
        return _restates(question, one, other)
    prediction = _right_side(question, reference, prediction)
    for found in (
        _same_amount(question, reference, prediction, is_relaxed=is_relaxed),
        same_date(question, reference, prediction),
        _same_polarity(question, one, other),
        _same_items(question, reference, prediction),
    ):
        if found is not None:
            return found
    return _same_words(question, one, other)


def _differs_in_case(one: str, other: str) -> bool:
    """`Co` and `CO`, `MW` and `mW`: short, and written with capitals inside or on both sides."""
    pairs = zip(one.split(), other.split(), strict=False)
    return any(
        word != mate and word.casefold() == mate.casefold() and len(word) < 4 and any(map(str.isupper, word[1:] + mate[1:]))
        and not (word.isupper() and mate.islower() or word.islower() and mate.isupper()) or _is_formula(word, mate)
        for word, mate in pairs
    )


def _is_formula(word: str, mate: str) -> bool:
    is_same = word.casefold() == mate.casefold() and word != mate
    return is_same and any(re.search(r"[a-z][A-Z]|[A-Z][a-z][A-Z\d]", form) for form in (word, mate)) and len(word) < 7


def _right_side(question: str, reference: str, prediction: str) -> str:
    """`x = 12` where the question asks for x and the reference gives the value alone."""
    found = re.fullmatch(r"([A-Za-z]\w?) ?= ?(\S.*)", strip_latex(prediction), re.DOTALL)
    if found and "=" not in reference and re.search(rf"(?<!\w){re.escape(found[1])}(?!\w)", question):
        return found[2]
    return prediction


def _same_amount(question: str, reference: str, prediction: str, *, is_relaxed: bool) -> bool | None:
    is_difference = says(question, DIFFERENCE)
    same = same_quantity(strip_latex(reference), strip_latex(prediction), is_difference=is_difference)
    one, other = read_amount(reference), read_amount(prediction)
    if same or one is None or other is None:
        if same is None and (one is None) != (other is None) and re.fullmatch(r"[^a-z]*", loose(reference)):
            return None
        return same
    is_exact = says(question, YEAR) or says(question, LABEL) or is_year_like(reference)
    close = partial(is_close, tolerance=Fraction(0) if is_exact or not is_relaxed else RELAXED_TOLERANCE)
    if says(question, FALL) and other.value < 0 < one.value:
        other = Amount(value=-other.value, places=other.places, currency=other.currency, unit=other.unit)
    if one.currency != other.currency and one.currency and other.currency:
        return False
    is_same = is_equal(one, other) or close(one.value, other.value)
    if ("%" in (one.unit, other.unit)) and one.unit != other.unit:
        return _same_share(question, one, other, is_same)
    if one.unit and other.unit:
        return is_same and _same_unit(one, other)
    if unit := one.unit or other.unit:
        return _same_with_one_unit(question, (one, other), unit, is_same, (reference, prediction))
    return is_same


def _same_share(question: str, one: Amount, other: Amount, is_same: bool) -> bool | None:
    """A percent sign on one side alone: 12 % is 12 where a percentage is asked for, else 0.12 as well."""
    percent, plain = (one, other) if one.unit == "%" else (other, one)
    if plain.unit:
        return False
    if re.search(r"percent|%", question.casefold()):
        return is_same
    is_hundredth = percent.value == plain.value * 100
    return is_hundredth or (is_same and one is percent)


def _same_unit(one: Amount, other: Amount) -> bool:
    """Units that pint knows were compared by it; other words are the same but for a plural."""
    words = [re.sub(r"(?:es|s)\b", "", loose(amount.unit)) for amount in (one, other)]
    return words[0] == words[1] or words[0] in words[1].split() or words[1] in words[0].split()


def _same_with_one_unit(
    question: str, sides: tuple[Amount, Amount], unit: str, is_same: bool, texts: tuple[str, str]
) -> bool | None:
    asked, words = question.casefold(), loose(unit).split()
    if re.search(r"\b(?:how many|number of)\b", asked):
        counted = re.split(r"\b(?:is|are|was|were|do|does|did|can|have|has|in|on|at)\b", asked.split("how many")[-1])[0]
        stems = {word.rstrip("s") for word in re.findall(r"\w+", counted)}
        if any(word.rstrip("s") in stems for word in words):
            return is_same
    if named := re.search(r"\b(?:in|how many|\() ?([a-z°/]+(?: per \w+)?(?:[²³])?)", asked):
        wanted = read_unit(named[1])
        if wanted is not None and read_unit(unit) is not None:
            texts = (f"{texts[0]} {named[1]}", texts[1]) if not sides[0].unit else (texts[0], f"{texts[1]} {named[1]}")
            return same_quantity(*texts, is_difference=False) or False
    if re.search(r"\bhow many\b", asked) and not sides[0].unit:
        return False
    return is_same if read_unit(unit) is not None or sides[0].unit else is_same and len(words) == 1


def _same_polarity(question: str, one: str, other: str) -> bool | None:
    """A reference that says yes or no, and what the prediction says, a contradiction or a swap included."""
    expected = _YES_NO.get(re.split(r"\W", one)[0]) if one else None
    if expected is None:
        return None
    first, _, rest = other.partition(" ")
    given = _YES_NO.get(first)
    if given is None:
        shared = set(re.findall(r"\w+", other)) & set(re.findall(r"\w+", question.casefold())) - _FILLERS
        is_negated = bool(_DENIAL.search(other)) != bool(re.search(r" not ", question.casefold()))
        return (not is_negated) == expected if shared and len(other.split()) > 1 else False
    if re.search(r"\b(?:or|but|yes|cannot|unsure|maybe)\b", rest) or (given and _DENIAL.search(rest)):
        return False
    return given == expected and not (given and _is_swapped(question, rest))


def _is_swapped(question: str, tail: str) -> bool:
    """`yes, the red one is taller` of `is the blue one taller than the red one?`"""
    asked = [word for word in re.findall(r"\w+", question.casefold()) if word not in _FILLERS]
    said = [word for word in re.findall(r"\w+", tail) if word in asked]
    rest = iter(asked)
    return not all(word in rest for word in said)


def _same_items(question: str, reference: str, prediction: str) -> bool | None:
    expected, given = _items(reference), _items(prediction)
    if len(expected) < 2:
        return None
    brackets = [text[:1] + text[-1:] for text in (reference, prediction)]
    marks = [pair if pair[0] in _BRACKET_PAIRS else "" for pair in brackets if pair]
    if len(expected) != len(given) or (all(marks) and marks[0] != marks[1]):
        return False
    same = partial(_same, question, is_relaxed=False)
    is_ordered = marks[0] in ("()", "[]", "(]", "[)") or says(question, ORDERED) or says(question, LABEL)
    if is_ordered or " beat " in reference:
        return all(map(same, expected, given))
    if Counter(map(loose, expected)) == Counter(map(loose, given)):
        return True
    return len(expected) <= 12 and all(sum(same(item, mate) for mate in given) == expected.count(item) for item in expected)


def _items(text: str) -> list[str]:
    text = re.sub(r"^[(\[{\\ ]+|[)\]}\\ ]+$", "", text) if text[:1] in _BRACKET_PAIRS or text[:2] == "\\{" else text
    parts = re.split(r"[;\n]|,(?!\d{3}(?!\d))|,? and (?!\d/)|(?<=\w) & (?=\w)|(?<=\S) (?=\d\. )", text)
    return [re.sub(r"^(?:\d{1,2}[.)]|[-•*]) ", "", part.strip()) for part in parts if part and part.strip()]


def _same_words(question: str, one: str, other: str) -> bool:
    if re.sub(r"(?:es|s)\b", "", one) == re.sub(r"(?:es|s)\b", "", other) and len(one) > 3:
        return True
    if re.sub(r" ?\([^)]*\)", "", one) == re.sub(r" ?\([^)]*\)", "", other):
        return True
    if re.findall(r"\d+|[^\w\s]", one) == re.findall(r"\d+|[^\w\s]", other) and min(len(one), len(other)) >= 9:
        is_denied = bool(_DENIAL.search(one)) != bool(_DENIAL.search(other))
        return not is_denied and set(one.split()) != set(other.split()) and fuzz.ratio(one, other) >= SIMILAR
    return _restates(question, one, other)


def _restates(question: str, one: str, other: str) -> bool:
    """A sentence that says the reference in the words of the question and adds nothing."""
    found = re.search(rf"(?<![\w.,-]){re.escape(one)}(?![\w%]|[.,]\d|-\w)", other)
    if found is None or len(one.split()) == 0:
        return False
    asked = question.casefold()
    extra = re.findall(r"[\w']+", other[: found.start()] + " " + other[found.end() :])
    known = set(re.findall(r"[\w']+", asked)) | _FILLERS | {"the", "a", "an", "answer", "so"}
    # Where the question itself names the reference, it has to be what the sentence is about.
    is_subject = one not in asked or not set(re.findall(r"\w+", other[: found.start()])) - _FILLERS - {"the", "answer"}
    is_counted = not counts(question) or len(re.findall(r"\d+", other)) == 1
    return is_subject and is_counted and set(extra) <= known and not _DENIAL.search(" ".join(extra))
