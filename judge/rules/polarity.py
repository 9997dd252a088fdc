"""Yes and no as answers."""

from __future__ import annotations

import re

from judge.rules.findings import Finding, Rule, wrong
from judge.rules.normalise import fold_unicode, normalise, unwrap

_YES, _NO = frozenset({"yes", "true"}), frozenset({"no", "false"})
_DENIALS = frozenset({"no", "not", "never", "false", "none", "nothing", "neither", "nor", "hardly", "barely"})
_DENIALS |= {"scarcely", "lacks", "lack", "lacking", "without", "absent", "missing", "instead", "rather"}
_CONTRASTS = frozenset({"or", "but", "although", "though", "however", "except", "unless", "if"})
_DOUBTS = _CONTRASTS | {"maybe", "perhaps", "cannot", "unable", "unclear", "unknown", "unsure", "sure", "know", "idea"}
_GOES_ON = re.compile(r"(yes|no) (?=(?:it|he|she|they|there|this|that|these|those|the)\b)")
"""A sentence without its comma: `Yes it is`."""
_POLAR = re.compile(
    r"(?:^|[.,;:!?]\s)\s*(?:is|are|was|were|do|does|did|can|could|has|have|had|will|would|should|may|might|must|am)"
    r"(?:n't)?\b|\b(?:yes or no|true or false)\b"
)
"""A question, or the part of one after a comma, that begins as questions for yes or no do."""
_FILLERS = frozenset(
    ("a", "an", "the", "this", "that", "these", "those", "it", "its", "he", "she", "they", "we", "you")
)
_FILLERS |= {"i", "there", "is", "are", "was", "were", "be", "been", "do", "does", "did", "can", "could", "has", "have"}
_FILLERS |= {"had", "will", "would", "of", "in", "on", "at", "to", "and", "indeed"}
"""Words that neither deny nor add anything."""
_ZERO_TO_TEN = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(_ZERO_TO_TEN)}


def compare_polarity(reference: str, prediction: str, question: str = "") -> Finding | None:
    """None where the reference is not yes or no alone.

    Args:
        question: a yes is certain where it goes on in the words of the question alone, a no where it does not repeat
            them: `Yes, it is free of red` and `No, it is red` may say the opposite. Where the question is none for
            yes or no, `false` may be a word to read, and no `no`.
    """
    expected = _read(reference)
    if expected is None or len(normalise(reference).split()) != 1:
        return None
    given = _read(prediction)
    if given is not None:
        is_plain = _is_plain(reference, prediction, question, is_yes=given)
        rule = Rule.YES_NO if is_plain else Rule.YES_NO_UNCLEAR
        return Finding(is_correct=given is expected, rule=rule, detail="yes" if given else "no")
    words = set(normalise(prediction).split())
    if words & _YES and words & _NO and words <= _YES | _NO | {"and", "or", "both", "either"}:
        return wrong(Rule.YES_AND_NO)
    leaning = _read(_GOES_ON.sub(r"\1, ", normalise(prediction), count=1))
    return Finding(is_correct=leaning is expected, rule=Rule.YES_NO_UNCLEAR)


def _is_plain(reference: str, prediction: str, question: str, *, is_yes: bool) -> bool:
    """Nothing that follows the yes or no can turn it round."""
    word, *rest = _words(fold_unicode(prediction).casefold().replace("n't", " not"))
    asked = fold_unicode(question).casefold()
    is_polar = _POLAR.search(asked) is not None
    is_other = is_yes != (normalise(reference) in _YES)
    if not rest:
        return is_polar or is_other or word == normalise(reference)
    known = _words(asked)
    stems = tuple(part for part in known if len(part) > 1 and not part.isdigit())
    is_repeated = all(part in _FILLERS or part.startswith(stems) for part in rest if not part.isdigit())
    numbers = {part for part in rest if part.isdigit()}
    if is_yes:
        return is_polar and is_repeated and numbers.issubset(known)
    # Another number may take a no back as well as bear it out: `No, there are three` where two were asked for.
    is_borne_out = not is_repeated or bool(_DENIALS.intersection(rest))
    return (is_polar or is_other) and not rest[0].isdigit() and is_borne_out


def _words(text: str) -> list[str]:
    """Words and numbers, small numbers in digits."""
    return [_NUMBERS.get(part, part) for part in re.findall(r"[^\W\d_]+|\d+", text)]


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
