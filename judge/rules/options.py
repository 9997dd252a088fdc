"""Options that a question lists, and which of them an answer names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial

from judge.rules.text import bare, same_text

_LABEL = re.compile(r"(?:(?<=[\s,;:?.])|^)(?:\(([A-J])\)|([A-J])[.):])(?=\s*\S)")
_LAST = re.compile(r"\n|[.;]?\s+(?:answer|please|choose|select|reply|respond|write)\b", re.IGNORECASE)
_NAMED = re.compile(
    r"(?:option |choice |answer )?\(?([A-J])(?:[.):]*|(?:\)|[.:]\)?| -) ?(\S.*))", re.IGNORECASE | re.DOTALL
)
_SEVERAL = re.compile(r"\(?[A-J]\)?(?:(?: ?[,;&] ?| and |, and | )\(?[A-J]\)?)+", re.IGNORECASE)


def read_options(question: str) -> dict[str, str]:
    """Letter to text, in order; empty where the question does not list A, B, … exactly once."""
    labels = list(_LABEL.finditer(question))
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
    found = likely_options(options, answer, partial(same_text, "")) or ()
    return next(iter(found)) if len(found) == 1 else None


def likely_options(options: Mapping[str, str], answer: str, same: Callable[[str, str], bool]) -> frozenset[str] | None:
    """The letters that an answer names; None where it names none, empty where letter and text disagree."""
    if letter := letter_of(answer):
        return frozenset(letter)
    if _SEVERAL.fullmatch(answer):
        return frozenset(re.findall(r"\b[A-J]\b", answer.upper()))
    if (both := _NAMED.fullmatch(answer)) and both[1].upper() in options:
        return frozenset(both[1].upper() if same(options[both[1].upper()], both[2]) else "")
    named = [letter for letter, text in options.items() if same(text, answer)]
    return frozenset(named) if len(named) == 1 else None
