"""The best guess of rules that stand last: right where an answer says all of the reference and names no rival of it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from judge.rules.amounts import CURRENCIES, is_within_5_percent, is_year_like, read_amount, with_digits
from judge.rules.asked import CHANGE, FALL, LABEL, ORDERED, YEAR, certain_option, letter_of, read_options, says
from judge.rules.text import bare, boxed_answer, case_matters, loose, strip_latex
from judge.rules.units import read_unit, same_quantity


def _stems(words: Iterable[str]) -> list[str]:
    """`peaked` and `peak`, `represents` and `represent`: the same word."""
    return [re.sub(r"(?:ing|ed|es|s)$", "", word) if len(word) > 4 and word.isalpha() else word for word in words]


_DENIAL = re.compile(
    r"\b(?:not|never|no|cannot|without|(?:is|are|was|were|does?|did|ha[sd]|have|wo|[cw]ould)n'?t|neither|nor|none"
    r"|incorrect|wrong|false?)\b(?! ?\S*\d)"
)
_HEDGE = re.compile(r"\b(?:or|either|maybe|perhaps|might|could|can(?:not|'t)|un(?:sure|clear|known)|not sure)\b")
_VERBS = {*re.findall(r"\w+", "is are was were be been has have had do does did show say read appear look its ther")}
_FILLING = (
    "it thi this that thes thos her here i we you he she they a an the of in on at to by for with from as and so than "
    "one which who wher when whil because sinc follow shown seen visible locat call nam named pictur picture image "
    "chart graph about answer accord bas indicat would can see say says read reads there these those where while since"
)
_FILLERS = _VERBS | {*re.findall(r"\w+", _FILLING)}
_RIVAL_BEFORE = re.compile(r"(?:than|from|with|against|beats?|over|under|least|most|nearly|almost)$")
_CHOSEN = re.compile(r"(?:\b(?:answer|option|choice)(?: is)?:? \(?|^\(?(?=[A-J][.:)] )|\((?=[A-J]\)))([A-J])\b")
_NUMBER = re.compile(r"((?<![\w.,])\d+(?:[.,]\d+)*(?=\s|%|°|$)|[$€£])")
_CLAUSE = re.compile(r"[,;:?]+(?:\s|$)|(?<=\w{3})[.!](?:\s|$)|\s(?=(?:and|but|while|whereas|so|because|which|who)\s)")


def is_likely_right(question: str, reference: str, prediction: str, *, is_relaxed: bool) -> bool:
    """Whether the prediction probably says what the reference says. No certainty in it."""
    sides = [boxed_answer(text) for text in (reference, prediction)]
    if not sides[1]:
        return False
    expected, given = (with_digits(strip_latex(bare(side or reference))) for side in sides)
    if options := {letter: strip_latex(text) for letter, text in read_options(question).items()}:
        wanted, sure = (certain_option(options, text) for text in (expected, given))
        said = sure or next(iter(_CHOSEN.findall(given)), None)
        if wanted and said:
            rivals = [text for letter, text in options.items() if letter != said and not sure]
            return wanted == said and not any(re.search(rf"(?<!\w){re.escape(text)}(?!\w)", given) for text in rivals)
        question, expected = question.partition(next(iter(options.values())))[0], options.get(wanted or "", expected)
    return letter_of(given) == expected or _same(question, expected, given, is_relaxed)


def _same(question: str, reference: str, prediction: str, is_relaxed: bool) -> bool:
    one, other = loose(reference), loose(prediction)
    if one == other:
        return prediction.islower() or not case_matters(reference, prediction)
    # `x = 12` where the question asks for x, and `12 + 15 = 27`.
    name = re.match(r"(\w) ?=", prediction)
    if name and not re.search(rf"\b{name[1]}\b", question):
        return False
    prediction = prediction if "=" in reference else prediction.rpartition("=")[2].strip()
    # `3.10`, `007`, `2E3` name something; whole numbers are the same however they are written.
    if not (says(question, LABEL) and re.fullmatch(r"(?!0$|[1-9]\d*$)[\w.:/-]*\d[\w.:/-]*", one)):
        found = _same_amount(question, reference, prediction, is_relaxed)
        found = _same_polarity(question, reference, other) if found is None else found
        if found is not None:
            return found
    return _names(question, reference, prediction)


def _same_amount(question: str, reference: str, prediction: str, is_relaxed: bool) -> bool | None:
    """Whether two amounts are the same; None where one of them is none."""
    if says(question, FALL):  # by -5 % it fell, and by 5 %
        reference, prediction = reference.lstrip("-"), prediction.lstrip("-")
    one, other, words = read_amount(reference), read_amount(prediction), question.casefold()
    if one and other and other.unit and not one.unit:
        # The question may name the unit, or say what is counted.
        named = re.findall(r"(?:how many|\bin|unit:|\() ?([^\W\d]\S*)(?: ([^\W\d]+))?", words)
        units = {CURRENCIES.get(name.strip("?)."), name.strip("?).")) for pair in named for name in pair if name}
        is_named = "how many" in words or any(name in CURRENCIES.values() or read_unit(name) for name in units)
        if is_named and {*_stems(other.unit.split())}.isdisjoint(_stems(units)):
            return False
    if one and other and one.unit and other.unit:
        reference, prediction = (f"{float(side.value):.12g} {side.unit}" for side in (one, other))
    same = same_quantity(reference, prediction, is_rise=says(question, CHANGE))
    if same is not None or one is None or other is None:
        return same
    expected, given = one.value, other.value
    if "%" in (one.unit, other.unit):
        # 12 % is 0.12, and `12` may leave the sign out; 0.5 is not 0.5 %, and 0.12 no percentage.
        factors = [1 if "percent" in words or side.unit or side.value > 1 else 100 for side in (one, other)]
        expected, given = expected * factors[0], given * factors[1]
    is_exact = says(question, YEAR) or says(question, LABEL) or is_year_like(reference) or one.unit.isalpha()
    is_near = is_relaxed and not is_exact and is_within_5_percent(expected, given)
    is_other_unit = one.unit and other.unit and _stems(one.unit.split()) != _stems(other.unit.split())
    return (expected == given or is_near) and not is_other_unit


def _same_polarity(question: str, reference: str, other: str) -> bool | None:
    """A reference that says yes or no, and a prediction that does, or repeats the question with or without a `not`."""
    polar = re.match(r"(yes|no|true|false)(?![\w ])", reference.casefold())
    if polar is None:
        return None
    is_yes, (first, _, rest) = polar[1] in ("yes", "true"), other.replace(",", "").partition(" ")
    is_short = first in ("yes", "true", "no", "false")
    text = rest if is_short else other
    asked = _stems(re.findall(r"[\w']+", with_digits(question.casefold())))
    said = [word for word in _stems(re.findall(r"[\w']+", text)) if word not in _FILLERS]
    # `yes, the red one is taller` of `is the blue one taller than the red one?`
    left, is_denied = iter(asked), says(text, _DENIAL)
    is_plain = all(word in left for word in said if word in asked)
    if _HEDGE.search(other) or re.search(r"\b(?:but|yes)\b", rest):
        return False
    if is_short:
        return (first in ("yes", "true")) == is_yes and (not is_yes or (is_plain and not is_denied))
    is_known = not {*said}.isdisjoint(asked) and (is_denied or (is_plain and {*said} <= {*asked}))
    return is_known and " " in other and (is_denied != ("not" in asked)) != is_yes


def _names(question: str, reference: str, prediction: str) -> bool:
    """Whether a sentence names the reference in the first clause that says something new, and no rival."""
    sought, *clauses = (
        _stems(
            word.strip("{}") for word in _NUMBER.sub(r" \1 ", loose(text.replace(", ", " "))).split() if word != "and"
        )
        for text in (reference, *_CLAUSE.split(prediction))
    )
    words, asked = [word for clause in clauses for word in clause], {*_stems(loose(with_digits(question)).split())}
    clause_of = [at for at, clause in enumerate(clauses) for _ in clause]
    if not sought or not words or _HEDGE.search(loose(prediction)):
        return False

    def has_new(some: Iterable[str]) -> bool:
        return not asked | _FILLERS >= {*some}

    start = next((at for at in range(len(words)) if words[at : at + len(sought)] == sought), None)
    if start is None:
        is_set = re.search(r"^[^(\[].*(?:,| and )", reference) and not says(question, ORDERED)
        is_part = {*words} < {*sought} and has_new(words) and not has_new({*sought} - {*words})
        return sorted(words) == sorted(sought) if is_set else is_part and not _DENIAL.search(" ".join(sought))
    end, clause = start + len(sought), clause_of[start]
    before, others = words[:start], words[:start] + words[end:]
    numbers = {word for word in words if word[0].isdigit() and is_year_like(word) == is_year_like(reference)}
    return not (
        (sought[0][0] in "0123456789$€£" and numbers - asked - {*sought})
        or _DENIAL.search(
            " ".join(word for word, at in zip(words, clause_of, strict=True) if at <= clause + 1 and word not in sought)
        )
        # `hot dog`: a phrase that is no sentence adds nothing.
        or (has_new(others) and {*others}.isdisjoint(_VERBS | asked))
        or has_new(re.findall(r"(\S+) than\b", " ".join(words)))
        or has_new(word for word, at in zip(before, clause_of, strict=False) if at < clause)
        or len({*before} - asked - _FILLERS) > 1
        or (before and _RIVAL_BEFORE.match(before[-1]) and before[-1] not in asked)
        # A question that names the reference names its rivals.
        or (not has_new(sought) and {*before} - _FILLERS and before[-1] not in ("on", "in"))
        # `red, green and blue`
        or (end < len(words) and clause_of[end] > clause_of[end - 1] and has_new([words[end]]))
    )
