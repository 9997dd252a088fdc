"""MM-Vet: an LLM grades each answer from 0 to 1, by the capabilities that a question takes.

Source: Yu et al., ICML 2024 (arXiv 2308.02490); yuweihao/MM-Vet `mm-vet_evaluator.ipynb`. The score is the mean grade
in percent, and the paper averages five gradings. There a grade that cannot be read ends as 0; here it is no verdict.
"""

from __future__ import annotations

import re


def shown_reference(answer: str) -> str:
    """The reference with its marks `<AND>` and `<OR>` apart from the words around them, as the grader gets it."""
    return re.sub(r" *(<AND>|<OR>) *", r" \1 ", answer).strip()
