"""Answers without a letter or a digit: `+`, `<`, `∞`, `?`."""

from __future__ import annotations

import unicodedata

from judge.rules.findings import Finding, Rule, right, wrong
from judge.rules.normalise import fold_unicode, is_blank, normalise

_IN_ASCII = str.maketrans({"≤": "<=", "≥": ">=", "≠": "!=", "→": "->", "←": "<-", "⇒": "=>", "✔": "✓", "☑": "✓"})
_NAMES = {
    "?": "question",
    "!": "exclamation",
    ".": "period stop dot point decimal",
    ",": "comma",
    ":": "colon",
    ";": "semicolon",
    "-": "dash hyphen minus subtraction subtract negative",
    "/": "slash division divide divided by",
    "\\": "backslash",
    "*": "asterisk star times multiplication multiply multiplied by",
    "+": "plus addition add positive",
    "=": "equals equal to",
    "<": "less smaller than",
    ">": "greater larger more than",
    "$": "dollar dollars",
    "^": "caret",
    "~": "tilde",
    "()": "parenthesis parentheses bracket brackets",
    "[]": "bracket brackets",
    "{}": "brace braces",
    "&": "ampersand and",
    "%": "percent percentage",
    "@": "at",
    "#": "hash hashtag pound number",
    "_": "underscore",
    "'": "apostrophe quote quotation",
    '"': "quote quotation",
}
_MARKUP_SIGNS = frozenset("|~^`")
"""ASCII that Unicode counts among symbols though it says nothing; `+`, `<` and `$` have names."""
_KINDS = frozenset(("mark", "marks", "sign", "signs", "symbol", "full"))


def names_sign(words: str, sign: str) -> bool:
    """Whether a text is the name of a sign: `question mark` and `?`."""
    names = _NAMES.get("".join(dict.fromkeys(fold_unicode(sign).replace(" ", ""))), "").split()
    said = normalise(words).split()
    return any(word in names for word in said) and _KINDS.union(names).issuperset(said)


def compare_signs(reference: str, prediction: str) -> Finding | None:
    """A finding where one side is signs alone, else None."""
    if not (is_blank(prediction) or is_blank(reference)):
        return None
    sides = [fold_unicode(text).translate(_IN_ASCII) for text in (prediction, reference)]
    if sides[0] == sides[1]:
        return right(Rule.SIGNS, "same")
    if is_blank(prediction) and is_blank(reference):
        is_plain = all(len(side) == 1 and unicodedata.category(side) != "So" for side in sides)
        return wrong(Rule.SIGNS if is_plain else Rule.SIGNS_AGAINST_WORDS, "different")
    if names_sign(reference, prediction):
        return right(Rule.SIGNS_AGAINST_WORDS)
    return wrong(Rule.ONLY_SIGNS if is_blank(prediction) and _is_punctuation(prediction) else Rule.SIGNS_AGAINST_WORDS)


def _is_punctuation(text: str) -> bool:
    """Signs that say nothing by themselves; `∞`, `✓` or a face might."""
    return all(char in _MARKUP_SIGNS or unicodedata.category(char)[0] in "PZC" for char in text)
