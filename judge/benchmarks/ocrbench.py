"""OCRBench: an answer counts where the prediction contains it.

Source: Liu et al., arXiv 2305.07895; Yuliang-Liu/MultimodalOCR `OCRBench/example.py`.
"""

from __future__ import annotations

from collections.abc import Iterable

HANDWRITTEN_MATH = "HME100k"
"""Its answers are LaTeX: compared without any space, and with case."""
FULL_SCORE = 1000
"""The official score is the number of right answers among 1,000 questions."""


def contains_answer(prediction: str, answers: Iterable[str], dataset: str) -> bool:
    """Whether any of the answers stands in the prediction, line feeds as spaces."""
    return any(_form(answer, dataset) in _form(prediction, dataset) for answer in answers)


def _form(text: str, dataset: str) -> str:
    if dataset == HANDWRITTEN_MATH:
        return text.strip().replace("\n", " ").replace(" ", "")
    return text.lower().strip().replace("\n", " ")
