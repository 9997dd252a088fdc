"""DocVQA: average normalised Levenshtein similarity (ANLS).

Source: Biten et al., ICCV 2019, eq. 1; Mathew et al., WACV 2021 (arXiv 2007.00398), section 5.1. The order of steps is
that of the challenge's evaluator (rrc.cvc.uab.es), kept by QwenLM/Qwen-VL `eval_mm/infographicsvqa_eval.py` and by
lmms-eval `api/metrics.py`.
"""

from __future__ import annotations

from collections.abc import Iterable

from rapidfuzz.distance import Levenshtein

THRESHOLD = 0.5
"""A similarity below it is 0. Exactly 0.5 counts in the evaluator, though eq. 1 says that it does not."""


def anls(prediction: str, answers: Iterable[str]) -> float:
    """The best similarity over the answers, from 0.5 to 1, or else 0.

    Case and white space are evened out before the distance is taken, but it is divided by the longer text as written.
    """
    nearest = min(_distance(prediction, answer) for answer in answers)
    return 1 - nearest if 1 - nearest >= THRESHOLD else 0.0


def _distance(prediction: str, answer: str) -> float:
    longest = max(len(prediction.upper()), len(answer.upper()))
    return Levenshtein.distance(_even(prediction), _even(answer)) / longest if longest else 0.0


def _even(text: str) -> str:
    return " ".join(text.strip().lower().split())
