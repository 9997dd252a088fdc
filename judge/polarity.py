"""Yes and no as answers."""

from __future__ import annotations

import re

from judge.findings import Finding, Rule, wrong
from judge.normalise import fold_unicode, normalise, unwrap

_YES, _NO = frozenset({"yes", "true"}), frozenset({"no", "false"})
_DENIALS = frozenset({"no", "not", "never", "false", "none", "nothing", "neither"})
_CONTRASTS = frozenset({"or", "but", "although", "though", "however", "except", "unless", "if"})
_DOUBTS = _CONTRASTS | {"maybe", "perhaps", "cannot", "unable", "unclear", "unknown", "unsure", "sure", "know", "idea"}
_GOES_ON = re.compile(r"(yes|no) (?=(?:it|he|she|they|there|this|that|these|those|the)\b)")
"""A sentence without its comma: `Yes it is`."""


def compare_polarity(reference: str, prediction: str) -> Finding | None:
    """None where the reference is not yes or no alone."""
    expected = _read(reference)
    if expected is None or len(normalise(reference).split()) != 1:
        return None
    given = _read(prediction)
    if given is not None:
        return Finding(is_correct=given is expected, rule=Rule.YES_NO, detail="yes" if given else "no")
    words = set(normalise(prediction).split())
    if words & _YES and words & _NO and words <= _YES | _NO | {"and", "or", "both", "either"}:
        return wrong(Rule.YES_AND_NO)
    leaning = _read(_GOES_ON.sub(r"\1, ", normalise(prediction), count=1))
    return Finding(is_correct=leaning is expected, rule=Rule.YES_NO_UNCLEAR)


def _read(text: str) -> bool | None:
    """True for yes, False for no, None for anything that is not clearly one of them.

    `Yes, there are two` is a yes; `yes or no`, `Yes, it is not` and `Yes, but only one` are neither.
    """
    text = unwrap(fold_unicode(text)).casefold()
    match = re.match(r"([a-z]+)(?=\s*(?:[,.;:!-]|$))", text)
    if match is None or match[1] not in _YES | _NO:
        return None
    others = set(re.findall(r"[a-z]+", text[match.end() :].replace("n't", " not")))
    if others & _DOUBTS:
        return None
    if match[1] in _YES:
        return None if others & _DENIALS else True
    return None if others & _YES else False
