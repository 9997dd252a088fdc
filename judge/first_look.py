"""What is settled before anybody reads the answer: nothing in it, too much of it, or an announcement of an answer.

Such texts pass for right surprisingly often when a model judges them (`One Token to Fool LLM-as-a-Judge`, 2025), so no
model is asked about them.
"""

from __future__ import annotations

import unicodedata

from judge.findings import Finding, Rule, right, wrong
from judge.normalise import fold_unicode, is_blank, normalise

MAX_ANSWER_CHARS = 2_000
"""A longer answer is wrong unread."""

_PASS_PHRASES = frozenset(
    phrase.strip()
    for phrase in """
        solution|answer|answer is|final answer|final answer is
        my answer|my answer is|my final answer|here is answer|here is my answer|here is solution|here is final answer
        thought process|thinking process|thinking|reasoning|reasoning process|step by step|explanation|analysis
        lets think step by step|lets solve this step by step|lets solve this problem step by step|lets think|lets begin
        correct|correct answer|correct answer is|same as reference|reference answer|verdict|conclusion|as above
        lösung|antwort|réponse|respuesta|solución|解|答案|解答
    """.replace("\n", "|").split("|")
)
"""In the form that `normalise` gives."""


def first_look(reference: str, prediction: str, *, max_chars: int = MAX_ANSWER_CHARS) -> Finding | None:
    """A finding where the text alone settles it or holds no word to compare, else None.

    Args:
        reference: the right answer, not empty.
        prediction: as it stood between the answer tags.
        max_chars: of the prediction.
    """
    if len(prediction) > max_chars:
        return wrong(Rule.OVER_LONG, f"longer than {max_chars} characters")
    if not prediction.strip():
        return wrong(Rule.EMPTY)
    if is_blank(prediction) or is_blank(reference):
        if fold_unicode(prediction) == fold_unicode(reference):
            return right(Rule.SIGNS, "same")
        if is_blank(prediction) and is_blank(reference):
            return wrong(Rule.SIGNS, "different")
        return wrong(Rule.ONLY_SIGNS if _is_punctuation(prediction) else Rule.SIGNS_AGAINST_WORDS)
    text = normalise(prediction)
    if text in _PASS_PHRASES and text != normalise(reference):
        return wrong(Rule.PASS_PHRASE)
    return None


def _is_punctuation(text: str) -> bool:
    """Signs that say nothing by themselves; `∞`, `✓` or a face might."""
    return all(char.isascii() or unicodedata.category(char)[0] in "PZC" for char in text) and is_blank(text)
