"""Multiple choice: the options that a question lists, and the letter that an answer names."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from judge.rules.findings import Finding, Rule, wrong
from judge.rules.normalise import normalise, strip_latex, unwrap

_OPTION_MARK = re.compile(r"(?:^|(?<=[\s,;:]))(?:\(([A-J])\)|([A-J])[.):])(?=\s*\S)", re.MULTILINE)
_NUMBER_MARK = re.compile(r"(?:^|(?<=[\s,;:]))(?:\(([1-9])\)|([1-9])[.)])(?=\s+\S)", re.MULTILINE)
_LONE_LETTER = re.compile(r"(?:(?:option|choice)\s+)?\(?([A-Ja-j])\)?[.:)]?", re.IGNORECASE)
_LETTER_AND_TEXT = re.compile(r"(?:\(([A-Ja-j])\)|([A-Ja-j])[.:)])\s*(\S.*)", re.DOTALL)
# One way only to read each joint: with a choice of two, a row of n letters would take time of 2^n.
_LETTERS = re.compile(r"\(?[A-J]\)?(?:(?:\.? ?[,/&] ?(?:(?:or|and) )?|\.? (?:or|and) | )\(?[A-J]\)?)+")
_OF_OTHERS = re.compile(
    r"\b(?i:both|all|above|these|either|neither|none)\b|\b[A-J]\b\)?(?: ?[,/&] ?| (?:and|or) )\(?[A-J]\b"
)
"""In the text of an option that stands for others: `both A and B`, `all of the above`."""
_OTHER_LETTER = re.compile(r"\b[B-HJ]\b|\b(?:or|not)\b")
"""What may take a letter back: `A) or B`, `A) because B is not`."""
_SENTENCE_END = re.compile(r"[.?!]\s+(?=[A-Z])|\n")


def parse_options(question: str) -> dict[str, str]:
    """Options that a question lists, letter to text: `A. red`, `(B) blue` or `C) green`, from A on without a gap.

    Empty when there are fewer than two.
    """
    return _listed(question, _OPTION_MARK, "A")


def names_by_number(question: str, number: str, text: str, same: Callable[[str, str], Finding]) -> bool:
    """Whether one answer is the number before an option and the other that option's text: `(1) 5 (2) 6`, 2 and 6."""
    option = _listed(question, _NUMBER_MARK, "1").get(unwrap(number))
    return option is not None and same(option, text).is_correct


def _listed(question: str, mark_pattern: re.Pattern[str], first: str) -> dict[str, str]:
    """What stands behind each mark, from the first on without a gap."""
    marks: list[re.Match[str]] = []
    for mark in mark_pattern.finditer(question):
        letter = mark[1] or mark[2]
        if letter == first and len(marks) < 2:
            marks = [mark]
        elif marks and letter == chr(ord(first) + len(marks)):
            marks.append(mark)
    if len(marks) < 2:
        return {}
    ends = [mark.start() for mark in marks[1:]] + [len(question)]
    texts = [question[mark.end() : end].strip().rstrip(",;").strip() for mark, end in zip(marks, ends, strict=True)]
    # What follows the last option is often an instruction: the option ends with its line or sentence.
    texts[-1] = _SENTENCE_END.split(texts[-1], maxsplit=1)[0]
    return {mark[1] or mark[2]: text for mark, text in zip(marks, texts, strict=True)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    letter: str
    is_certain: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of one question."""

    texts: dict[str, str]
    """Letter to text; empty where they stand in the picture, or where there are none."""
    same: Callable[[str, str], Finding]
    """Compares the text of an option with an answer."""

    def compare(self, reference: str, prediction: str) -> Finding | None:
        """By letters; None where the reference is no option, or the prediction none that can be told."""
        if several := self._compare_several(reference, prediction):
            return several
        expected = self._choice(reference)
        is_letter = re.fullmatch(r"[A-J]", unwrap(reference)) is not None
        if expected is None or not (self.texts or is_letter):
            return None
        given = self._choice(prediction)
        if given is not None:
            is_certain = unwrap(reference) == unwrap(prediction) or (given.is_certain and expected.is_certain)
            rule = Rule.OPTION if is_certain else Rule.LIKELY_OPTION
            detail = f"{given.letter} against {expected.letter}"
            return Finding(is_correct=given.letter == expected.letter, rule=rule, detail=detail)
        return self._refuse(prediction)

    def _compare_several(self, reference: str, prediction: str) -> Finding | None:
        """Where several options are right: `A, C` is `A and C` and `AC`."""
        expected, given = self._letters(reference), self._letters(prediction)
        if len(expected) < 2 or not given:
            return None
        # `AC` may be a side of a triangle and the text of an option, `C` an option that says `both A and B`.
        if self._matching(reference) or self._matching(prediction) or (given != expected and self._has_joint_option()):
            return None
        detail = f"{''.join(sorted(given))} against {''.join(sorted(expected))}"
        return Finding(is_correct=given == expected, rule=Rule.OPTION, detail=detail)

    def _letters(self, answer: str) -> frozenset[str]:
        """Letters of listed options, where the answer is nothing else."""
        answer = " ".join(unwrap(strip_latex(answer.strip())).split())
        if not (_LETTERS.fullmatch(answer) or re.fullmatch(r"[A-J]{1,10}", answer)):
            return frozenset()
        letters = frozenset(re.findall(r"[A-J]", answer))
        return letters if letters <= self.texts.keys() and " or " not in answer else frozenset()

    def _choice(self, answer: str) -> _Choice | None:
        """The option that an answer names, by its letter, its letter and text, or its text."""
        answer = unwrap(strip_latex(answer.strip()))
        if lone := _LONE_LETTER.fullmatch(answer):
            letter = lone[1].upper()
            matching = [choice for choice in self._matching(answer) if choice.letter != letter]
            if not self.texts or letter in self.texts:
                # An option's text may be the letter of another, or end with it: `Vitamin A`.
                is_certain = not matching and not self._is_in_text(letter, rf"\b{letter}$")
                return _Choice(letter=letter, is_certain=is_certain)
            return matching[0] if len(matching) == 1 else None
        if labelled := _LETTER_AND_TEXT.fullmatch(answer):
            letter, text = (labelled[1] or labelled[2]).upper(), labelled[3]
            if not self.texts:
                is_open = _OPTION_MARK.search(text) or _LETTERS.fullmatch(" ".join(answer.split()))
                return None if is_open else _Choice(letter=letter, is_certain=_OTHER_LETTER.search(text) is None)
            finding = self.same(self.texts[letter], text) if letter in self.texts else None
            return _Choice(letter=letter, is_certain=finding.is_certain) if finding and finding.is_correct else None
        matching = self._matching(answer)
        matching = [choice for choice in matching if choice.is_certain] or matching
        return matching[0] if len(matching) == 1 else None

    def _matching(self, answer: str) -> list[_Choice]:
        findings = {letter: self.same(text, answer) for letter, text in self.texts.items()}
        return [
            _Choice(letter=letter, is_certain=finding.is_certain)
            for letter, finding in findings.items()
            if finding.is_correct
        ]

    def _is_in_text(self, letter: str, pattern: str) -> bool:
        """Whether the text of another option holds a letter."""
        return any(re.search(pattern, unwrap(text)) for of, text in self.texts.items() if of != letter)

    def _has_joint_option(self) -> bool:
        """`Both A and B`, or `John and Mary` beside `John` and `Mary`."""
        texts = {letter: normalise(text) for letter, text in self.texts.items()}
        for letter, text in texts.items():
            others = {other for of, other in texts.items() if of != letter and other and other != text}
            if sum(re.search(rf"(?<!\w){re.escape(other)}(?!\w)", text) is not None for other in others) > 1:
                return True
        return any(_OF_OTHERS.search(text) for text in self.texts.values())

    def _refuse(self, prediction: str) -> Finding | None:
        """Answers that name no option, or more than one."""
        answer = " ".join(unwrap(strip_latex(prediction.strip())).split())
        if _LETTERS.fullmatch(answer) and len(set(re.findall(r"[A-J]", answer))) > 1:
            return None if self._has_joint_option() else wrong(Rule.SEVERAL_OPTIONS)
        if self.texts and (lone := _LONE_LETTER.fullmatch(answer)):
            letter = lone[1].upper()
            return None if self._is_in_text(letter, rf"\b{letter}\b") else wrong(Rule.NO_OPTION)
        labelled = _LETTER_AND_TEXT.fullmatch(answer)
        if self.texts and labelled and any(choice.is_certain for choice in self._matching(labelled[3])):
            return wrong(Rule.NO_OPTION, "letter and text of different options")
        return None
