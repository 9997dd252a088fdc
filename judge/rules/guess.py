"""The best guess of rules that stand last: right where an answer says all of the reference and names no rival of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial

from PIL import ImageColor
from rapidfuzz import fuzz

from judge.rules.amounts import (
    CURRENCIES,
    PLAIN,
    SCALES,
    is_within_5_percent,
    is_year_like,
    read_amount,
    same_date,
    with_digits,
)
from judge.rules.asked import DIFFERENCE, FALL, LABEL, ORDERED, YEAR, letter_of, likely_options, read_options, says
from judge.rules.text import bare, boxed_answer, case_matters, loose, strip_latex
from judge.rules.units import read_unit, same_quantity

_POLAR = {"yes": True, "yeah": True, "true": True, "no": False, "nope": False, "false": False}
_DENIAL = re.compile(
    r"\b(?:not|never|no|cannot|without|(?:is|are|was|were|does?|did|ha[sd]|have|wo|[cw]ould)n'?t|neither|nor|none"
    r"|incorrect|wrong|false)\b(?! ?\S*\d)"
)
_HEDGE = re.compile(r"\b(?:or|either|maybe|perhaps|possibly|might|can(?:not|'t)|un(?:sure|clear|known)|not sure)\b")
_COMPARES = re.compile(r"\b(?:than|before|after|left|right|above|below|behind|under|over|to|by|from)\b")
_INSTRUCTION = re.compile(r"(?:please )?(?:answer|reply|respond)\b[^.?]{0,30}\byes\b.{0,20}", re.IGNORECASE)
_SAYS = "is are was were be been has have had does do did shows says reads appears looks seems its theres"
_VERBS = frozenset(re.findall(r"\w+", _SAYS))
_FILLERS = _VERBS | frozenset(
    re.findall(
        r"\w+",
        "it its this that these those there here i we you he she they a an the of in on at to by for with from as and "
        "so than one which who where when while because since followed shown show seen visible located called named "
        "picture image chart graph about answer according based indicated would",
    )
)
_RIVAL_BEFORE = frozenset(("than", "from", "beat", "beats", "over", "under", "least", "most", "nearly", "almost"))
"""`Anna is taller than Ben` does not answer with Ben, nor `at least 7` with 7."""
_CLAUSE = re.compile(r"[,;:?]+(?:\s|$)|(?<=\w{3})[.!](?:\s|$)|\s(?=(?:and|but|while|whereas|so|because|which|who)\s)")
_FIGURE = re.compile(
    rf"(?<![\w.,:/^])((?:US\$|[$€£¥] ?)?-?(?:\d+ ?/ ?[1-9]\d*|{PLAIN}|\.\d+))(?![\d:/^√π]|[.,]\d)"
    r"( ?(?:%|[^\W\d_]+|°[CF]?)?(?:\^?[23])?(?: [^\W\d_]+){0,2})"
)
_NOT_THE_WORD = re.compile(r"(?<=\b[a-z])[. ](?=[a-z]\b)|(?<=[a-z]{2})(?:es|s)\b")
"""The dots of initials, a plural."""


def is_likely_right(question: str, reference: str, prediction: str, *, is_relaxed: bool) -> bool:
    """Whether the prediction probably says what the reference says. No certainty in it."""
    sides = [boxed_answer(text) for text in (reference, prediction)]
    if not sides[1]:
        return False
    expected, given = (with_digits(strip_latex(bare(side or reference))) for side in sides)
    options = {letter: strip_latex(text) for letter, text in read_options(question).items()}
    if options or letter_of(expected):
        stem = question.partition(next(iter(read_options(question).values()), "\n"))[0]
        chosen = [likely_options(options, text, partial(_same, stem)) for text in (expected, given)]
        if letter_of(expected) or None not in chosen:
            return bool(chosen[1]) and chosen[0] == chosen[1]
    return _same(question, expected, given, is_relaxed=is_relaxed)


def _same(question: str, reference: str, prediction: str, *, is_relaxed: bool = False) -> bool:
    one, other = loose(reference), loose(prediction)
    if one == other:
        return prediction.islower() or not case_matters(reference, prediction, max_chars=5)
    if (is_date := same_date(question, reference, prediction)) is not None:
        return is_date
    if "=" in reference and "=" in prediction:
        reference, prediction = (re.sub(r" ?([-=+*/]) ?", r"\1", text) for text in (reference, prediction))
    elif "=" in reference + prediction:
        # `x = 12` where the question asks for x, and `12 + 15 = 27`.
        names = [text.rpartition("=")[0].strip() for text in (reference, prediction)]
        if any(len(name) == 1 and not re.search(rf"\b{re.escape(name)}\b", question) for name in names):
            return False
        reference, prediction = (text.rpartition("=")[2].strip() for text in (reference, prediction))
    # `3.10`, `007`, `2E3` name something; whole numbers are the same however they are written.
    if not (says(question, LABEL) and re.fullmatch(r"(?!0$|[1-9]\d*$)[\w.:/-]*\d[\w.:/-]*", one)):
        for found in (
            _same_amount(question, reference, prediction, is_relaxed),
            _same_polarity(question, reference, other),
            _names_amount(question, reference, prediction, is_relaxed),
        ):
            if found is not None:
                return found
        if _same_words(one, other):
            return True
    return _names(question, reference, prediction)


def _same_amount(question: str, reference: str, prediction: str, is_relaxed: bool) -> bool | None:
    """Whether two amounts are the same; None where one of them is none."""
    if says(question, FALL):
        reference, prediction = (re.sub(r"^(?:-|minus |negative )", "", text) for text in (reference, prediction))
    one, other, words = read_amount(reference), read_amount(prediction), question.casefold()
    if one and other and other.unit and not one.unit:
        # The question may name the unit, or say what is counted.
        for named in re.findall(r"(?:\bin|how many|\(unit:|\() ?([a-z°]{2,}(?: per \w+|/\w+)?|[mgsl]\b)", words):
            one = one._replace(unit=named) if read_unit(named) and read_unit(other.unit) else one
        _, how_many, behind = words.rpartition("how many")
        counted = re.split(r"\b(?:is|are|was|were|do|does|did|can|have|has|in|on|at|sit)\b", behind)[0]
        if not one.unit and how_many and {*_stems(other.unit.split())}.isdisjoint(_stems(counted.split())):
            return False
    if one and other and one.unit and other.unit:
        reference, prediction = (f"{float(side.value):.12g} {side.unit}" for side in (one, other))
    same = same_quantity(reference, prediction, is_difference=says(question, DIFFERENCE))
    if same is not None or one is None or other is None:
        return same
    money = {one.currency} - {""} or {CURRENCIES[word] for word in re.findall(r"\w+", words) if word in CURRENCIES}
    if other.currency and money and other.currency not in money:
        return False
    expected, given, is_percent = one.value, other.value, "%" in (one.unit, other.unit) and one.unit != other.unit
    if is_percent:
        # 12 % is 0.12, and `12` may leave the sign out; 0.5 is not 0.5 %, and 0.12 no percentage.
        factors = [1 if "percent" in words or side.unit or side.value > 1 else 100 for side in (one, other)]
        expected, given = expected * factors[0], given * factors[1]
    scale = re.search(r"\b(?:in|\() ?(thousand|million|billion)s?\b", words)
    is_exact = says(question, YEAR) or says(question, LABEL) or is_year_like(reference)
    is_same = expected == given or (scale is not None and given == expected * SCALES[scale[1]])
    is_near = is_relaxed and not is_exact and is_within_5_percent(expected, given)
    is_other_unit = one.unit and other.unit and _stems(one.unit.split()) != _stems(other.unit.split())
    return (is_same or is_near) and not is_other_unit


def _stems(words: Iterable[str]) -> list[str]:
    return [_NOT_THE_WORD.sub("", word) for word in words]


def _coarse(word: str) -> str:
    """`peaked` and `peak`, `represents` and `represent`: whether a word comes from the question."""
    return re.sub(r"(?:ing|ed|es|s|e)$", "", word) if len(word) > 4 else word


def _same_polarity(question: str, reference: str, other: str) -> bool | None:
    """A reference that says yes or no, and what the prediction says, a contradiction or a swap included."""
    polar = re.match(r"(yes|no|true|false)(?![\w ])", reference.casefold())
    if polar is None:
        return None
    question = with_digits(_INSTRUCTION.sub("", question).casefold())
    expected, (first, _, rest) = _POLAR[polar[1]], other.replace(",", "").partition(" ")
    given = _POLAR.get(first)
    said, asked_for = (re.findall(r"[\w']+", text) for text in (other if given is None else rest, question))
    asked = [*map(_coarse, asked_for)]
    is_known = [_coarse(word) in asked for word in said if word not in _FILLERS]
    # `yes, the red one is taller` of `is the blue one taller than the red one?`
    left, shared = iter(asked), [word for word in map(_coarse, said) if word in asked and word not in _FILLERS]
    is_swapped = says(question, _COMPARES) and not all(word in left for word in shared)
    if _HEDGE.search(other) and "or" not in asked_for:
        return False
    if given is None:
        has_other_number = any(word.isdigit() and word not in asked for word in said)
        is_denied = (has_other_number or says(other, _DENIAL)) != ("not" in asked_for)
        is_plain = is_denied or (all(is_known) and not is_swapped)
        return any(is_known) and " " in other and is_denied != expected and is_plain
    is_undone = re.search(r"\b(?:but|yes)\b", rest) or (given and (is_swapped or says(rest, _DENIAL)))
    return given == expected and not is_undone


def _same_words(one: str, other: str) -> bool:
    """The same but for a letter, or but for the signs between the digits of a long number."""
    if re.fullmatch(r"(?:[\d().+/-]|\s){7,}", one):
        return re.findall(r"\d", one) == re.findall(r"\d", other) and len(one) - len(other) < 5
    signs = [[*re.findall(r"\d+|[^\w\s]", text), bool(_DENIAL.search(text))] for text in (one, other)]
    is_turned = set(one.split()) == set(other.split())
    return len(one) >= 9 and signs[0] == signs[1] and not is_turned and fuzz.ratio(one, other) >= 92


def _names_amount(question: str, reference: str, prediction: str, is_relaxed: bool) -> bool | None:
    """Whether a sentence names the reference's amount, and no other that the question does not hold; None of texts."""
    if (one := read_amount(reference)) is None:
        return None
    text, is_named, is_year = prediction.casefold(), False, is_year_like(reference)
    if _HEDGE.search(text) or (_DENIAL.search(text) and not says(question, _DENIAL)):
        return False
    asked = {*re.findall(PLAIN, with_digits(question)), *re.findall(PLAIN, question)}
    for found in _FIGURE.finditer(prediction):
        words, before = found[2].split(), prediction[: found.start()].casefold()
        figure, unit = "", ""
        for size in range(len(words), -1 + found[2][:1].isalpha(), -1):
            # `5 miles per hour`, and `5` of `5 men are here`.
            longer = " ".join([found[1], *words[:size]])
            if (it := read_amount(longer)) and (not it.unit or (words[0] not in _FILLERS and read_unit(it.unit))):
                figure, unit = longer, it.unit
                break
        is_counted = bool(words) and words[0] not in _FILLERS and not unit
        if figure and _same_amount(question, reference, figure, is_relaxed):
            is_named = not (one.unit == "%" and is_counted) and not {*before.split()[-1:]} & _RIVAL_BEFORE
        elif is_named and is_counted and re.search(r"\w \S+ [a-z]+[,;:.] $", before):
            break  # `It has 4 wheels, 2 on each side.`
        elif is_year_like(found[1]) == is_year and found[1] not in asked and unit in ("", "%", one.unit):
            return False
    return is_named


def _names(question: str, reference: str, prediction: str) -> bool:
    """Whether a sentence names the reference as its answer: in the first clause that says something new, and no rival.

    A shorter prediction may leave out what the question says, and items may be in another order.
    """
    wanted, *clauses = (
        [word.strip("{}") for word in loose(text.replace(", ", " ")).split() if word != "and"]
        for text in (reference, *_CLAUSE.split(prediction))
    )
    said = [(word, at) for at, clause in enumerate(clauses) for word in clause]
    words, asked = [word for word, _ in said], {*map(_coarse, loose(question).split())}
    if not wanted or not words or _HEDGE.search(loose(prediction)):
        return False

    def is_new(word: str) -> bool:
        return _coarse(word) not in asked and word not in _FILLERS

    stems, sought = map(_stems, (words, wanted))
    start = next((at for at in range(len(words)) if stems[at : at + len(sought)] == sought), None)
    if start is None:
        is_set = re.search(r"^[^(\[].*(?:,| and )", reference) and not says(question, ORDERED)
        is_part = {*words} < {*wanted} and any(map(is_new, words)) and not any(map(is_new, {*wanted} - {*words}))
        return sorted(stems) == sorted(sought) if is_set else is_part and not _DENIAL.search(" ".join(wanted))
    end, clause = start + len(sought), said[start][1]
    before, others, is_asked = words[:start], words[:start] + words[end:], not any(map(is_new, wanted))
    new = [at for word, at in said[:start] if is_new(word)]
    follower, is_next_item = (said[end][0], said[end][1] > said[end - 1][1]) if end < len(said) else ("", False)
    names = {word.casefold() for word in re.findall(r"(?<=\s)[A-Z]\w*", prediction)} & {*before, follower}
    colours = ImageColor.colormap.keys() & {*wanted, *loose(prediction).partition(" with ")[0].split()}
    return not (
        _DENIAL.search(" ".join(word for word, at in said[:start] + said[end:] if at <= clause + 1))
        # `hot dog`: a phrase that is no sentence adds nothing.
        or (any(map(is_new, others)) and not any(word in _VERBS or _coarse(word) in asked for word in others))
        or any(map(is_new, re.findall(r"(\S+) than\b", " ".join(words))))
        or len(new) > 2
        or any(at < clause for at in new)
        or (before and before[-1] in _RIVAL_BEFORE - asked)
        # A question that names the reference names its rivals.
        or (is_asked and {*before} - _FILLERS and before[-1] not in ("on", "in"))
        # `red, green and blue`; `Deputy Managing Director`; `a black hat and a white shirt`.
        or (is_next_item and is_new(follower))
        or (reference[:1].isupper() and any(map(is_new, names)))
        or (colours & {*wanted} and any(map(is_new, colours - {*wanted})))
    )
