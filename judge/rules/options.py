"""Options that a question lists, and which of them an answer names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from judge.rules.text import bare, loose

_LABEL = re.compile(r"(?:(?<=[\s,;:?.])|^)(?:\(([A-J])\)|([A-J])[.):])(?=\s*\S)")
_LAST = re.compile(r"\n|[.;]?\s+(?:answer|please|choose|select|reply|respond|write)\b", re.IGNORECASE)
_ONE = re.compile(r"(?:option |choice |answer )?\(?([A-J])\)?[.):]?", re.IGNORECASE)
_WITH_TEXT = re.compile(r"(?:option |choice |answer )?\(?([A-J])(?:\)|[.:]\)?| -) ?(\S.*)", re.IGNORECASE | re.DOTALL)
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
    found = _ONE.fullmatch(answer)
    return found[1].upper() if found else None


def certain_option(options: Mapping[str, str], answer: str) -> str | None:
    """The option that an answer names by its letter, its text, or both; None where letter and text may differ."""
    texts = {letter: " ".join(text.casefold().split()) for letter, text in options.items()}
    letter = letter_of(answer)
    if letter is not None:
        # Options that are letters themselves: `A. D  B. C` can be read in two ways.
        return letter if letter in options and not any(letter_of(text) for text in texts.values()) else None
    both = _WITH_TEXT.fullmatch(answer)
    if both and texts.get(both[1].upper()) == both[2].casefold():
        return both[1].upper()
    named = [letter for letter, text in texts.items() if text == answer.casefold()]
    return named[0] if len(named) == 1 else None


def likely_options(options: Mapping[str, str], answer: str, same: Callable[[str, str], bool]) -> frozenset[str] | None:
    """The letters that an answer probably names; None where it names none, empty where it contradicts itself."""
    if letter := letter_of(answer):
        return frozenset(letter)
    if _SEVERAL.fullmatch(answer):
        return frozenset(re.findall(r"\b[A-J]\b", answer.upper()))
    if both := _WITH_TEXT.fullmatch(answer):
        letter = both[1].upper()
        if letter in options and (same(options[letter], both[2]) or not options[letter]):
            return frozenset(letter)
        return frozenset() if letter in options else None
    named = [letter for letter, text in options.items() if loose(text) == loose(answer)] or [
        letter for letter, text in options.items() if same(text, answer)
    ]
    return frozenset(named) if len(named) == 1 else None
