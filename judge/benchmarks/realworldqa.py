"""RealWorldQA: the option's letter, or the exact word or number.

Source: xAI published the set (xai-org/RealworldQA) without a program; this is lmms-eval `tasks/realworldqa/utils.py`.
"""

from __future__ import annotations

import re

from judge.rules.asked import certain_option, read_options
from judge.rules.text import bare

LETTERS = ("A", "B", "C", "D")


def is_exact_match(question: str, prediction: str, reference: str) -> bool:
    """A letter is met by the letter, by the option's text or by both (`B`, `(b)`, `B. Two`), any other reference by the
    same text but for case and a full stop at the end."""
    wanted = reference.strip()
    if wanted.upper() in LETTERS:
        options, given = read_options(question), bare(prediction)
        if not options:  # the question does not list them in a known way
            first = re.match(r"\(?([A-D])(?![\w'])", given, re.IGNORECASE)
            return first is not None and first[1].upper() == wanted.upper()
        return certain_option(options, given) == wanted.upper()
    return prediction.lower().strip().rstrip(".") == wanted.lower()
