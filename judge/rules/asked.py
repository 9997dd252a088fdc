"""What a question says about the form of its answer: the unit, what is counted, a share, a year, an order."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum
from fractions import Fraction
from functools import lru_cache
from typing import TypeAlias

from judge.rules.normalise import fold_unicode
from judge.rules.quantity import Quantity, parse_quantity, words_of
from judge.rules.units import PERCENT, Unit, singular, unit_of

_COUNTED = re.compile(
    r"\b(?:how many|(?:total )?(?:number|count) of)\s+((?:[^\W\d_][\w'-]*+\s*+){1,5}?)"
    r"(?=\b(?:are|is|was|were|do|does|did|can|could|have|has|had|will|would|there|in|on|at|of|with|that|who|which|per|for"
    r"|from|and|or|between|shown|visible|by|to|over|under|it|he|she|they|you|we)\b|[?.,;:(]|$)"
)
_NO_THING = frozenset(
    ("are", "is", "was", "were", "do", "does", "did", "can", "could", "has", "have", "had", "will", "would", "in", "of")
)
"""First words after `how many` where the thing is left out: `how many were sold`, `how many did he earn`."""
_WITH_UNIT = re.compile(
    r"(?:\bhow many|\bin|\bnumber of|\bunits?:?|\((?:in )?)\s*"
    r"((?:square |cubic |degrees? )?[^\W\d_]+(?:/[^\W\d_]+| per [^\W\d_]+|\^?[23](?!\d))?|[%°$€£¥]\s?[a-z]?)"
    r"(?=[\s?.,;:)]|$)"
)
_PREPOSITIONS = frozenset(
    ("in", "a", "an", "the", "to", "second", "minute", "hour", "day", "week", "month", "year", "foot", "mile", "c", "f")
)
"""Words and letters that stand after `in` or a bracket without being the unit asked for: `in day 3`."""
_PERCENT = re.compile(r"\b(?:percent|percentage|per cent|pct)\b|%")
_SHARE = re.compile(r"\b(?:share(?! price)|fraction|proportion|probability|ratio|likelihood)\b")
_SCALES = {"hundreds": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALE = re.compile(r"\b(hundreds|thousand|million|billion|trillion)")
_YEAR = re.compile(r"(?<!how many )\byears?\b|\bwhen\b|\bdates?\b")
_AMOUNT = re.compile(r"\bhow (?:many|much)\b|\bnumber\b|\bcount\b|\btotal\b")
_FALL = re.compile(
    r"\b(?:fall|fell|drop|declin|decreas|reduc|shr[aiu]nk|los[et]|lower|less|fewer|below|down|differ|gap\b|deficit)"
)
_DETERMINERS = re.compile(r"\b(?:the|an?|this|that|these|those|his|her|its|their|my|your|our)\b.*")
_THINGS = r"(?:release|codes?|model|plate|chapter|section|phone|telephone|account|flight|pin|room|episode|licen[cs]e)"
"""Things that have a number, and that much else is asked of."""
_LABEL = re.compile(
    r"\b(?:version|serial|id|identifier|part number|licen[cs]e plate|zip|postcode|isbn|password|tracking)\b"
    rf"|\b{_THINGS}(?: numbers?\b| no\b| id\b| name\b)"
    rf"|\b(?:what|which)(?:'s| is| are| was)?(?: the| this| that| his| her| its| their| my)?(?: (?!of\b)\w+)??"
    rf" {_THINGS}"
    r"(?=\s*(?:[?.,;:]|$)| (?:is|are|was|were|does|do|did|has|of|in|on|at|for|to|shown|written|displayed)\b)"
)
"""`What is the room number`, `which flight is it`; not `the temperature of the room`, `the cost of the flight`."""
_HOW_MANY = re.compile(r"\bhow (?:many|much)\b|\bnumber of (?!the\b)|\bcount\b|\btotal\b")
_ORDER = re.compile(
    r"\bin order\b(?! to\b)|\bin (?:what|which|the|\w+) order\b|\border of\b|\bordered (?:by|from)\b"
    r"|\bsort(?:ed)?\b|\b(?:as|des)cending\b|\bchronological"
    r"|\bfrom (?:left|right|top|bottom|first|last|start|small|large|low|high|old|young|near|far|short|tall)\w* to\b"
)

_MAYBE_ORDER = re.compile(r"\bsequence\b|\brank(?:s|ed|ing)?\b|\bsteps\b")
"""`The colours of the sequence` are in its order, `the two that are ranked above 5` in any."""


_Amount: TypeAlias = tuple[Fraction, Unit | None]
_MAX_AMOUNT_WORDS = 4
"""`5 thousand square feet`."""
_SEVERAL = re.compile(r"\band\b|\brespectively\b|\beach\b")


class Order(Enum):
    """What a question says of the order of a list's items."""

    ASKED = "asked for"
    SPOKEN_OF = "spoken of"
    SEVERAL_ASKED = "several things are asked for"
    """`The length and the width`: the second for the first is wrong; `red and round` are of one thing."""
    FREE = "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Read from the question's words alone; what it leaves open is empty or False."""

    units: tuple[Unit, ...]
    """Units that the answer is to be in: `how many kg`, `in metres`, `(cm)`."""
    counted: frozenset[str]
    """Singular words of what is counted: `how many red apples` -> red, apple."""
    scale: int
    """1000 where the question speaks of thousands; 1 where it names no such word, or several."""
    is_amount: bool
    is_percent: bool
    is_share: bool
    is_fall: bool
    """Asks how much less, or for a difference: a minus sign may be written or not."""
    is_year: bool
    is_label: bool
    """Asks for a version, a code or a number by which something is called: `3.10` is not `3.1` there."""
    order: Order


def _counted(match: re.Match[str], text: str) -> list[str]:
    """Words of one counted thing; none where several are counted: `how many dogs and cats`."""
    if re.match(r"(?:and|or)\b|,", text[match.end() :]):
        return []
    words = re.findall(r"[^\W\d_]+", _DETERMINERS.sub("", match[1]))
    return [] if words and words[0] in _NO_THING else [singular(word) for word in words]


def _order(text: str) -> Order:
    if _ORDER.search(text):
        return Order.ASKED
    if _MAYBE_ORDER.search(text):
        return Order.SPOKEN_OF
    return Order.SEVERAL_ASKED if _SEVERAL.search(text) else Order.FREE


def _named_unit(words: str) -> Unit | None:
    """`degrees is` names degrees; `miles per gallon` is nothing that the table holds, and no length."""
    return unit_of(words) or (None if " per " in words else unit_of(words.split()[0]))


def read_question(question: str) -> Asked:
    text = fold_unicode(question).casefold()
    counted = frozenset(word for match in _COUNTED.finditer(text) for word in _counted(match, text))
    named = [_named_unit(match[1]) for match in _WITH_UNIT.finditer(text) if match[1] not in _PREPOSITIONS]
    scales = set(_SCALE.findall(text))
    return Asked(
        units=tuple(dict.fromkeys(unit for unit in named if unit is not None and unit != PERCENT)),
        counted=counted,
        scale=_SCALES[scales.pop()] if len(scales) == 1 else 1,
        is_amount=_AMOUNT.search(text) is not None,
        is_percent=_PERCENT.search(text) is not None,
        is_fall=_FALL.search(text) is not None,
        is_share=_SHARE.search(text) is not None,
        is_year=_YEAR.search(text) is not None,
        is_label=_LABEL.search(text) is not None and _HOW_MANY.search(text) is None,
        order=_order(text),
    )


def is_restated(question: str, reference: Quantity, prediction: Quantity) -> bool:
    """Whether an answer equal to the reference only says again what the question says.

    `2 hours` is no answer to `how many minutes are 2 hours`, nor `6/3` to `compute 6/3`.
    """
    has_sum_undone = _amounts_in(question).get(_amount(prediction))
    if has_sum_undone is None:
        return False
    is_converted = reference.value != prediction.value and reference.unit != prediction.unit
    return is_converted or (has_sum_undone and not prediction.is_plain)


@lru_cache(maxsize=64)
def _amounts_in(question: str) -> dict[_Amount, bool]:
    """Each amount of a question, and whether it is written there as anything but a plain number."""
    words = [word.strip("?!,;:()\"'").rstrip(".?!,") for word in fold_unicode(question).split()]
    known_words = words_of(question)
    found: dict[_Amount, bool] = {}
    for start, first in enumerate(words):
        one = ["1"] if first.casefold() in ("a", "an") else [first]
        for end in range(start + 1, start + 1 + _MAX_AMOUNT_WORDS):
            if quantity := parse_quantity(" ".join(one + words[start + 1 : end]), known_words):
                amount = _amount(quantity)
                found[amount] = found.get(amount, False) or not quantity.is_plain
    return found


def _amount(quantity: Quantity) -> _Amount:
    return quantity.value, quantity.unit and replace(quantity.unit, is_clear=True)
