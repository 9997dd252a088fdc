"""Judging by written rules: no model, no network, the same verdict every time.

The whole answer must say what the reference says. An answer that merely holds the reference somewhere, such as a list
of all the candidates, is wrong: a policy under training finds every such gap.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from actors.errors import JudgeError
from judge.normalise import boxed_answer, fold_unicode, is_blank, normalise, strip_latex, unwrap
from judge.quantity import parse_quantity, quantities_agree, words_of
from judge.verdict import Failure, JudgeRequest, NoVerdict, Outcome, Verdict

JUDGE_NAME = "rules"
MAX_ANSWER_CHARS = 2_000
"""A longer answer is wrong unread."""

_LEAD_IN = re.compile(
    r"^(?:(?:so|thus|therefore|hence),?\s+)?(?:the\s+|my\s+)?(?:(?:final|correct|right|best)\s+)?"
    r"(?:answer|option|choice)\s*(?:is\s*:?|:)\s*",
    re.IGNORECASE,
)
_OPTION_MARK = re.compile(r"(?:^|(?<=[\s,;:]))(?:\(([A-J])\)|([A-J])[.):])(?=\s*\S)", re.MULTILINE)
_LONE_LETTER = re.compile(r"(?:(?:option|choice)\s+)?\(?([A-Ja-j])\)?[.:)]?", re.IGNORECASE)
_LETTER_AND_TEXT = re.compile(r"(?:\(([A-Ja-j])\)|([A-Ja-j])[.:)])\s*(\S.*)", re.DOTALL)
_SENTENCE_END = re.compile(r"[.?!]\s+(?=[A-Z])|\n")
_LIST_SEPARATOR = re.compile(r"\s*[;\n]\s*|\s*,\s+(?:and\s+)?|\s*,(?![0-9]{3}(?![0-9]))\s*|\s+and\s+")
_HAS_LIST_SEPARATOR = re.compile(r"[;\n]|,")
_YES, _NO = frozenset({"yes", "true"}), frozenset({"no", "false"})
_DENIALS = frozenset({"no", "not", "never", "false"})


@dataclass(frozen=True, slots=True)
class RulesJudge:
    """The rules as a backend of the judge pool."""

    relative_tolerance: float

    async def grade(self, request: JudgeRequest) -> list[Outcome]:
        """One outcome per prediction; none for any of them when the reference itself is unusable."""
        try:
            return [
                judge_by_rules(
                    request.question, request.reference, prediction, relative_tolerance=self.relative_tolerance
                )
                for prediction in request.predictions
            ]
        except JudgeError as error:
            return [NoVerdict(reason=str(error), failure=Failure.REJECTED) for _ in request.predictions]


def judge_by_rules(question: str, reference: str, prediction: str, *, relative_tolerance: float) -> Verdict:
    """Decide whether a prediction says what the reference says.

    In this order: blank and over-long answers are wrong; `\\boxed{}` and `the answer is` are taken off; where the
    question lists options or the reference is a letter, both sides are resolved to a letter; otherwise text, numbers
    (see `quantities_agree`), yes or no, and comma lists are compared.

    Args:
        question: as asked; read for its options and for words that may stand as units.
        reference: the right answer.
        prediction: what stood between the answer tags.
        relative_tolerance: share of the reference within which two numbers are equal.

    Raises:
        JudgeError: the reference is empty, so nothing can be decided.
    """
    if not reference.strip():
        raise JudgeError("the reference answer is empty")
    if len(prediction) > MAX_ANSWER_CHARS:
        return _verdict(False, f"longer than {MAX_ANSWER_CHARS} characters")
    if not prediction.strip():
        return _verdict(False, "empty")
    if is_blank(prediction) or is_blank(reference):
        is_same = fold_unicode(prediction) == fold_unicode(reference)
        return _verdict(is_same, "same signs" if is_same else "no letter or digit in answer or reference")
    expected, given = boxed_answer(reference), boxed_answer(_LEAD_IN.sub("", prediction.strip()))
    if given is None or not given.strip():
        return _verdict(False, "boxes that are empty, unbalanced or disagree")
    rules = _Rules(question=question, relative_tolerance=relative_tolerance)
    return rules.judge(expected or reference, _LEAD_IN.sub("", given.strip()))


def parse_options(question: str) -> dict[str, str]:
    """Options that a question lists, letter to text: `A. red`, `(B) blue` or `C) green`, from A on without a gap.

    Empty when there are fewer than two.
    """
    marks: list[re.Match[str]] = []
    for mark in _OPTION_MARK.finditer(question):
        letter = mark[1] or mark[2]
        if letter == "A" and len(marks) < 2:
            marks = [mark]
        elif marks and letter == chr(ord("A") + len(marks)):
            marks.append(mark)
    if len(marks) < 2:
        return {}
    ends = [mark.start() for mark in marks[1:]] + [len(question)]
    texts = [question[mark.end() : end].strip().rstrip(",;").strip() for mark, end in zip(marks, ends, strict=True)]
    # What follows the last option is often an instruction: the option ends with its line or sentence.
    texts[-1] = _SENTENCE_END.split(texts[-1], maxsplit=1)[0]
    return {mark[1] or mark[2]: text for mark, text in zip(marks, texts, strict=True)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rules:
    question: str
    relative_tolerance: float

    def judge(self, reference: str, prediction: str) -> Verdict:
        options = parse_options(self.question)
        expected = self._letter(reference, options)
        if expected is not None and (options or unwrap(reference).isupper()):
            given = self._letter(prediction, options)
            if given is not None:
                return _verdict(given == expected, f"option {given} against {expected}")
        return self._same(reference, prediction)

    def _letter(self, answer: str, options: dict[str, str]) -> str | None:
        """The option that an answer names, by its letter, its letter and text, or its text."""
        answer = unwrap(strip_latex(answer.strip()))
        if lone := _LONE_LETTER.fullmatch(answer):
            letter = lone[1].upper()
            return letter if not options or letter in options else None
        if labelled := _LETTER_AND_TEXT.fullmatch(answer):
            letter, text = (labelled[1] or labelled[2]).upper(), labelled[3]
            if not options:
                return None if _OPTION_MARK.search(text) else letter
            is_consistent = letter in options and self._same(options[letter], text).is_correct
            return letter if is_consistent else None
        matching = [letter for letter, text in options.items() if self._same(text, answer).is_correct]
        return matching[0] if len(matching) == 1 else None

    def _same(self, reference: str, prediction: str) -> Verdict:
        item = self._same_item(reference, prediction)
        if item is not None:
            return item
        if _HAS_LIST_SEPARATOR.search(reference):
            return self._same_list(reference, prediction)
        return _verdict(False, "different text")

    def _same_item(self, reference: str, prediction: str) -> Verdict | None:
        """Compare as text, number, yes or no; None when none of these applies."""
        if normalise(reference) == normalise(prediction):
            return _verdict(True, "same text")
        words = words_of(self.question, reference)
        expected, given = parse_quantity(reference, words), parse_quantity(prediction, words)
        if expected is not None and given is not None:
            is_same = quantities_agree(expected, given, self.relative_tolerance)
            return _verdict(is_same, "same number" if is_same else "different number")
        polarity = _polarity(reference)
        if polarity is not None and len(normalise(reference).split()) == 1:
            return _verdict(_polarity(prediction) is polarity, "yes or no")
        return None

    def _same_list(self, reference: str, prediction: str) -> Verdict:
        """Items of a comma list in any order; in brackets `(3, 4)` and `[3, 4]` the order counts."""
        expected, given = _items(reference), _items(prediction)
        if len(expected) != len(given):
            return _verdict(False, f"{len(given)} items against {len(expected)}")
        if _without_end(reference)[:1] in ("(", "["):
            is_same = all(self._is_item(*pair) for pair in zip(expected, given, strict=True))
            return _verdict(is_same, "same items in order" if is_same else "different items or order")
        for item in expected:
            match = next((index for index, other in enumerate(given) if self._is_item(item, other)), None)
            if match is None:
                return _verdict(False, "different items")
            del given[match]
        return _verdict(True, "same items")

    def _is_item(self, reference: str, prediction: str) -> bool:
        verdict = self._same_item(reference, prediction)
        return verdict is not None and verdict.is_correct


def _without_end(text: str) -> str:
    """The text without punctuation at its end, brackets kept."""
    return text.strip().rstrip(".!?;: ")


def _items(text: str) -> list[str]:
    return [item for item in _LIST_SEPARATOR.split(unwrap(strip_latex(text.strip()))) if item.strip()]


def _polarity(text: str) -> bool | None:
    """True for yes, False for no, None for anything that is not clearly one of them.

    `Yes, there are two` is a yes; `yes or no` and `Yes, it is not` are neither.
    """
    text = unwrap(fold_unicode(text)).casefold()
    match = re.match(r"([a-z]+)(?=\s*(?:[,.;:!-]|$))", text)
    if match is None or match[1] not in _YES | _NO:
        return None
    others = set(re.findall(r"[a-z]+", text[match.end() :].replace("n't", " not")))
    if match[1] in _YES:
        return None if others & _DENIALS else True
    return None if others & _YES else False


def _verdict(is_correct: bool, reason: str) -> Verdict:
    return Verdict(is_correct=is_correct, judge=JUDGE_NAME, reason=reason)
