"""MathVerse: the final answer is extracted, and a judge compares it with the reference, per problem version.

Source: Zhang et al., ECCV 2024 (arXiv 2403.14624); ZrrSkywalker/MathVerse `evaluation/extract_answer_s1.py` and
`evaluation/score_answer_s2.py`. The chain-of-thought evaluation of the paper is another metric.
"""

from __future__ import annotations

from judge.rules.text import boxed_answer

MAX_PLAIN_WORDS = 6
FORM = "the value, expression, coordinates, interval or option letter alone"
"""For whoever extracts the answer."""


def plain_answer(answer: str) -> str | None:
    """The answer where it needs no extraction: in a box, or a few words; None where it does."""
    boxed = boxed_answer(answer)
    if boxed is not None and boxed != answer:
        return boxed
    return answer if len(answer.split()) <= MAX_PLAIN_WORDS else None
