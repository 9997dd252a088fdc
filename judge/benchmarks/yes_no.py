"""Yes or no, as MME and POPE read it out of an answer.

Sources: MME, Fu et al., arXiv 2306.13394, `eval_tool/calculation.py` of its release; POPE, Li et al., EMNLP 2023 (arXiv
2305.10355), AoiDragon/POPE `evaluate.py`.
"""

from __future__ import annotations

MME_PREFIX = 4
"""Characters that MME looks at where the answer is more than one word."""
POPE_DENIALS = frozenset({"No", "not", "no"})


def mme_answer(text: str) -> str:
    """`yes`, `no` or `other`: `Yes, there is` is yes, `None` is no, `There is not` is other."""
    start = text.lower()[:MME_PREFIX]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def pope_answer(text: str) -> str:
    """`no` where the first sentence has the word no, No or not; `yes` otherwise, whatever it says (`NO` is yes)."""
    words = text.partition(".")[0].replace(",", "").split(" ")
    return "no" if POPE_DENIALS.intersection(words) else "yes"
