"""What a question asks for, as far as its words say so plainly, and which of its options an answer names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from judge.rules.text import bare, same_text

LABEL = re.compile(
    r"\b(?:fig(?:ure)?|section|chapter|table|page|version|model|chip|codes?|serial|account|(?:tele)?phone|fax|zip"
    r"|postal|postcode|plate|licen[cs]e|room|flight|route|bus|train|line|gate|platform|invoice|order|id|identifier"
    r"|label\w*|number (?:of the|on|is)|no\.|password|pin|isbn|url|address|ticket|ref(?:erence)?|part|sku|lot|batch"
    r"|jersey|extension|passport|rank|position|place|floor|day|date|time|hour|clock|score|name|coordinates?|ratio"
    r"|digits?|step|level|grade|class|item|question|size|edition|article|registration|significant|decimals?|precision"
    r"|writ\w+|says?|texts?|print\w*|signs?|words?|quot\w+|imperial|uk|british)\b"
)
"""A code, a rank or another number that is no amount, words as they stand there, or units of another country."""
YEAR = re.compile(r"\b(?:what|in|the) year\b(?! \d)|\b(?:when|which|who|where)\b|\byear (?:did|was|is|has|with|had)\b")
"""A year, or one of several things: a number is its name then."""
AMOUNT = re.compile(
    r"\bhow (?:much|many|long|far|tall|high|big|large|heavy|fast|old)\b|\b(?:value|percent(?:age)?|average|mean|median"
    r"|total|sum|difference|rate|price|cost|population|share|proportion|revenue|sales|amount|income|gdp|fraction)\b"
)
"""A number to which a tolerance may apply."""
ORDERED = re.compile(
    r"\b(?:order\w*|sort\w*|arrang\w*|rank\w*|\w+ to \w+|point|coordinates?|steps?|codes?|first|last|vector|\w+est)\b"
)
"""Items in another order are another answer."""
FORM = re.compile(
    r"\b(?:simpl\w+|factor\w*|expand\w*|lowest|reduce\w*|form|rewrite|express\w*|convert\w*|evaluate|comput\w+"
    r"|calculat\w+|decimal|fraction|round\w*|exact\w*|notation|terms?|base|binary|units?|how many|write)\b"
)
"""Equal is not enough: `simplify 2/6` is not answered by `2/6`."""
FALL = re.compile(r"\b(?:f[ae]ll\w*|drop\w*|decreas\w*|declin\w*|los[st]\w*|loses?|fewer|lower|shr[aiu]nk|reduction)\b")
CHANGE = re.compile(
    rf"{FALL.pattern}|\b(?:r[io]se\w*|ris(?:en|ing)|increas\w*|chang\w*|differ\w*|warmer|colder|cooler|hotter)\b"
)
"""By how much something fell, or changed: a number without its sign, a distance."""
_COUNT = re.compile(r"(?:^|[.?!:;,\n]\s*|\b(?:in|of|for|by|with|at|count|about|say|tell me) )how many\b")
_NO_COUNT = re.compile(
    r"\b(?:about|around|nearly|approx\w*|estimat\w*|rough\w*|nearest|at least|at most|roman|binary|base|and (?:what"
    r"|which|who|how|where|when))\b"
)
_OPTION = re.compile(r"(?:(?<=[\s,;:?.])|^)(?:\(([A-J])\)|([A-J])[.):])(?=\s*\S)")
_LAST = re.compile(r"\n|[.;]?\s+(?:answer|please|choose|select|reply|respond|write)\b", re.IGNORECASE)
_NAMED = re.compile(
    r"(?:option |choice |answer )?\(?([A-J])(?:[.):]*|(?:\)|[.:]\)?| -) ?(\S.*))", re.IGNORECASE | re.DOTALL
)


def says(question: str, words: re.Pattern[str]) -> bool:
    return bool(words.search(question.casefold()))


def counts(question: str) -> bool:
    """It asks how many there are, exactly, and nothing else."""
    return says(question, _COUNT) and not says(question, _NO_COUNT)


def read_options(question: str) -> dict[str, str]:
    """Letter to text, in order; empty where the question does not list A, B, … exactly once."""
    labels = list(_OPTION.finditer(question))
    letters = [label[1] or label[2] for label in labels]
    if len(letters) < 2 or letters != [chr(65 + at) for at in range(len(letters))]:
        return {}
    ends = [label.start() for label in labels[1:]] + [len(question)]
    texts = [question[label.end() : end].strip() for label, end in zip(labels, ends, strict=True)]
    texts[-1] = _LAST.split(texts[-1])[0]
    return {letter: bare(text).rstrip(",;") for letter, text in zip(letters, texts, strict=True)}


def letter_of(answer: str) -> str | None:
    """The letter of an answer that is nothing else: `B`, `(b)`, `Option B.`"""
    found = _NAMED.fullmatch(answer)
    return found[1].upper() if found and not found[2] else None


def certain_option(options: Mapping[str, str], answer: str) -> str | None:
    """The option that an answer names by its letter, its text, or both; None where letter and text may differ."""
    if letter := letter_of(answer):
        # Options that are letters themselves: `A. D  B. C` can be read in two ways.
        return letter if letter in options and not any(map(letter_of, options.values())) else None
    both = _NAMED.fullmatch(answer)
    texts = [(letter, answer) for letter in options] + ([(both[1].upper(), both[2])] if both else [])
    named = {letter for letter, text in texts if same_text("", options.get(letter, ""), text)}
    return named.pop() if len(named) == 1 else None
