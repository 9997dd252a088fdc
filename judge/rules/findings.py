"""What a written rule found, and whether it may decide alone.

Certainty belongs to the rule that fired, not to the case: this table is the one place that says which rules settle an
answer by its writing. Where a model follows in the chain, only certain findings stand; the rest is handed on.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Rule(Enum):
    """Every way in which the rules come to a finding."""

    ONLY_SIGNS = ("no letter or digit in the answer", True)
    BOXES = ("boxes that are empty, unbalanced or disagree", True)
    SIGNS = ("signs", True)
    SIGNS_AGAINST_WORDS = ("signs against words", False)
    """`∞` may stand for `infinity`, `<` for `less than`."""

    TEXT = ("same text", True)
    OTHER_TEXT = ("different text", False)
    """Synonyms, paraphrases, long prose: knowledge, not writing."""
    SIMILAR = ("similar text", False)
    """ANLS forgives slips of reading, and with them `glass` for `grass`: final only where nobody else is asked."""
    DISSIMILAR = ("text that is not similar", False)

    OPTION = ("option", True)
    NO_OPTION = ("not one of the options", True)
    SEVERAL_OPTIONS = ("more than one option", True)
    LIKELY_OPTION = ("option, by a text that may mean it", False)

    NUMBER = ("number", True)
    """Number against number, in known units or in none, a unit left out being named by the question."""
    COUNT = ("number of what the question counts", True)
    UNIT_OF_A_COUNT = ("a measure where the question counts things", True)
    OTHER_DIMENSION = ("a unit of something else", True)
    NO_READING = ("a number that no unit or percent sign makes equal", True)
    SEVERAL_NUMBERS = ("more than one number", True)
    RANGE = ("range", True)
    UNSAID_UNIT = ("number, a unit on one side alone", False)
    UNKNOWN_UNIT = ("number, a word for its unit", False)
    UNCLEAR_UNIT = ("number, a unit of two meanings", False)
    NEARLY = ("number, near but not within the tolerance", False)
    """Somebody may have rounded, above all when converting: `16 km` for `10 miles`."""
    LABEL = ("number, leading zeros or a label", False)
    """A code or a postcode rather than an amount."""
    FRACTION = ("number, a fraction written otherwise", False)
    """`10/12` may be a date, `120/80` a pair of numbers, `2/5` two of five."""
    SIGN = ("number, another sign", False)
    """A fall of 5 may be written as -5."""
    RESTATED = ("a number of the question as it stands there", False)
    """Equal, and no answer to `how many minutes are 2 hours` or `compute 6/3`."""
    UNSAID_SCALE = ("number, thousands or millions on one side alone", False)
    """The axis of a chart may say `in millions`."""
    UNSAID_PERCENT = ("number, a percent sign on one side alone", False)

    YES_NO = ("yes or no", True)
    YES_AND_NO = ("yes and no", True)
    YES_NO_UNCLEAR = ("not clearly yes or no", False)

    DATE = ("date or time", True)
    DATE_UNCLEAR = ("date or time, not fully said", False)
    ORDINAL = ("rank", True)
    RANK_OR_NUMBER = ("number against rank", False)

    ITEMS = ("items", True)
    ITEM_ORDER = ("order of the items", True)
    ITEM_NUMBERS = ("numbers in the list", True)
    ITEMS_UNCLEAR = ("items that do not pair up", False)
    """Half a list of words may be enough (`Paris` of `Paris, France`), another word a synonym."""

    def __init__(self, text: str, is_certain: bool) -> None:
        self.text = text
        self.is_certain = is_certain
        """Whether writing alone settles it, so that no further judge need be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A rule fired."""

    is_correct: bool
    """The best verdict that rules can give; final where the rule is certain or nobody else is asked."""
    rule: Rule
    detail: str = ""

    @property
    def is_certain(self) -> bool:
        return self.rule.is_certain

    @property
    def reason(self) -> str:
        return f"{self.rule.text}: {self.detail}" if self.detail else self.rule.text


def right(rule: Rule, detail: str = "") -> Finding:
    return Finding(is_correct=True, rule=rule, detail=detail)


def wrong(rule: Rule, detail: str = "") -> Finding:
    return Finding(is_correct=False, rule=rule, detail=detail)
