"""Answers without a letter or a digit: `+`, `<`, `∞`, `?`."""

from __future__ import annotations

import unicodedata

from judge.findings import Finding, Rule, right, wrong
from judge.normalise import fold_unicode, is_blank


def compare_signs(reference: str, prediction: str) -> Finding | None:
    """A finding where one side is signs alone, else None."""
    if not (is_blank(prediction) or is_blank(reference)):
        return None
    if fold_unicode(prediction) == fold_unicode(reference):
        return right(Rule.SIGNS, "same")
    if is_blank(prediction) and is_blank(reference):
        return wrong(Rule.SIGNS, "different")
    return wrong(Rule.ONLY_SIGNS if _is_punctuation(prediction) else Rule.SIGNS_AGAINST_WORDS)


def _is_punctuation(text: str) -> bool:
    """Signs that say nothing by themselves; `∞`, `✓` or a face might."""
    return all(char.isascii() or unicodedata.category(char)[0] in "PZC" for char in text) and is_blank(text)
