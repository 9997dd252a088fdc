"""Judging by rules: no model, no network, the same verdict every time.

A rule decides only where writing alone settles it. All else goes on to the next judge, or gets a best guess where rules
stand last. A policy under training finds every rule that is certain and wrong.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias

from rapidfuzz.distance import Levenshtein

from actors.errors import JudgeError
from configs.judges import JudgeConfig
from judge.rules.amounts import definite_date, is_within_5_percent, is_year_like, one_number
from judge.rules.asked import AMOUNT, DIFFERENCE, FORM, LABEL, YEAR, certain_option, counts, read_options, says

from judge.rules.guess import is_likely_right
from judge.rules.math_worker import WORKER, looks_like_math
from judge.rules.text import bare, boxed_answer, fold_unicode, same_text
from judge.rules.units import same_quantity
from judge.verdict import Failure, JudgeRequest, NoVerdict, Outcome, Verdict

JUDGE_NAME = "rules"
Metric: TypeAlias = Literal["strict", "relaxed", "anls"]
MAX_CHARS = 400
"""Longer answers are compared as text alone, so that no answer keeps the rules busy."""
MAX_QUESTION_CHARS = 8000
ANLS_THRESHOLD = 0.5
"""ANLS (Biten et al., ICCV 2019, eq. 1): 1 - NL, the best over the references, and 0 where it is not above tau."""
_TEMPERATURE = re.compile(r"°|deg|kelvin|celsius|fahrenheit|\dK|\bK\b", re.IGNORECASE)
_SCALES = [Fraction(10) ** power for power in (-9, -6, -3, -2, 2, 3, 6, 9)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What the rules make of a prediction."""

    is_correct: bool
    is_certain: bool
    """Writing alone settles it. Otherwise `is_correct` is a guess, final only where nobody else is asked."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RulesJudge:
    """The rules as a backend of the judge pool."""

    metric: Metric = "strict"
    is_last: bool = True
    """Nobody decides after this judge: it guesses where it is not certain, and says so."""

    @classmethod
    def from_config(cls, config: JudgeConfig) -> RulesJudge:
        return cls(metric=config.metric, is_last=config.chain[-1] == "rules")

    async def grade(self, request: JudgeRequest) -> list[Outcome]:
        """One outcome per prediction; none for any of them when the reference itself is unusable."""
        try:
            return [await self._outcome(request, prediction) for prediction in request.predictions]
        except JudgeError as error:
            return [NoVerdict(reason=str(error), failure=Failure.REJECTED) for _ in request.predictions]

    async def _outcome(self, request: JudgeRequest, prediction: str) -> Outcome:
        finding = find_by_rules(request.question, request.reference, prediction, metric=self.metric)
        is_math = self.metric != "anls" and may_be_math(request.question, request.reference, prediction)
        if is_math and not finding.is_certain and await WORKER.is_equal(bare(request.reference), bare(prediction)):
            finding = _certainly(True, "math-verify: equal")
        if finding.is_certain or self.is_last:
            return Verdict(is_correct=finding.is_correct, judge=JUDGE_NAME, reason=finding.reason)
        return NoVerdict(reason="rules cannot tell", failure=Failure.UNDECIDED)


def find_by_rules(question: str, reference: str, prediction: str, *, metric: Metric = "strict") -> Finding:
    """Whether a prediction says what the reference says. Mathematics is left to `RulesJudge`, which may wait for it.

    With `anls` the reference may be a JSON array of right answers. Raises JudgeError where it is empty.
    """
    if not reference.strip():
        raise JudgeError("the reference answer is empty")
    if fold_unicode(reference) == fold_unicode(prediction):
        return _certainly(True, "same text")
    if metric == "anls":
        return _by_similarity(reference, prediction)
    if max(len(reference), len(prediction)) > MAX_CHARS:
        return _guess(False, "a long text, and another one")
    question, is_relaxed = question[:MAX_QUESTION_CHARS], metric == "relaxed"
    if settled := _certain(question, bare(reference), bare(prediction), is_relaxed):
        return settled
    is_right = is_likely_right(question, reference, prediction, is_relaxed=is_relaxed)
    return _guess(is_right, "the same" if is_right else "something else")


def _certain(question: str, reference: str, prediction: str, is_relaxed: bool) -> Finding | None:
    if same_text(question, reference, prediction):
        return _certainly(True, "same text")
    if options := read_options(question):
        chosen = [certain_option(options, text) for text in (reference, prediction)]
        return None if None in chosen else _certainly(chosen[0] == chosen[1], f"option {chosen[1]} for {chosen[0]}")
    words = reference.casefold(), prediction.casefold()
    # `NO` and `No` may be chemistry.
    if {*words} <= {"yes", "no"} and not {reference, prediction} >= {"NO", "No"}:
        return _certainly(words[0] == words[1], f"{words[1]} for {words[0]}")
    dates = definite_date(reference), definite_date(prediction)
    if dates[0] and dates[1]:
        return _certainly(dates[0] == dates[1], f"date {dates[1]} for {dates[0]}")
    return _number(question, reference, prediction, is_relaxed) or _quantity(question, reference, prediction)


def _number(question: str, reference: str, prediction: str, is_relaxed: bool) -> Finding | None:
    sides = one_number(reference), one_number(prediction)
    if sides[0] is None or sides[1] is None or sides[0][1] != sides[1][1]:
        return None
    (expected, around), (given, _) = sides[0], sides[1]
    is_count = around == "#" and counts(question)
    if not is_count and (says(question, LABEL)):
        return None
    if expected == given:
        return _certainly(True, "same number")
    values = Fraction(expected), Fraction(given)
    is_year = says(question, YEAR) or (is_year_like(reference) and not is_count)
    # `20 March` and `20 Downing Street` are no amounts.
    is_amount = re.fullmatch(r"-?#%?|[$€£¥₹]-?#", around) and (around.strip("-") != "#" or says(question, AMOUNT))
    if is_relaxed and (is_count or (is_amount and not is_year)) and is_within_5_percent(*values):
        return _certainly(True, "within 5 %")
    # Thousands or millions may stand on the axis.
    is_scaled = values[0] != 0 and values[1] / values[0] in _SCALES
    if is_count and expected.isdigit() and given.isdigit() and not is_scaled:
        return _certainly(False, f"a count of {given} for {expected}")
    return None


def _quantity(question: str, reference: str, prediction: str) -> Finding | None:
    """Units on both sides; open where the question wants a form or a text, or holds the prediction's number itself."""
    may_be_difference = says(question, DIFFERENCE) and _TEMPERATURE.search(f"{reference} {prediction}")
    numbers = [set(re.findall(r"\d[\d.,]*\b", text)) for text in (question, prediction)]
    if numbers[0] & numbers[1] or may_be_difference or says(question, FORM) or says(question, LABEL):
        return None
    return _certainly(True, "same quantity") if same_quantity(reference, prediction) else None


def may_be_math(question: str, reference: str, prediction: str) -> bool:
    """math-verify is asked: these are expressions, no form is wanted, and no options are listed."""
    is_open = says(question, FORM) or says(question, LABEL) or read_options(question)
    is_new = bare(prediction).replace(" ", "") not in question.replace(" ", "")
    return is_new and not is_open and looks_like_math(bare(reference), bare(prediction))


def _by_similarity(reference: str, prediction: str) -> Finding:
    try:
        texts = json.loads(reference) if reference.lstrip().startswith("[") else None
    except (json.JSONDecodeError, RecursionError):
        texts = None
    if not (isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)):
        texts = [reference]
    *expected, given = (fold_unicode(text).casefold() for text in (*texts, prediction))
    if given in expected:
        return _certainly(True, "same text")
    score = max(Levenshtein.normalized_similarity(text, bare(boxed_answer(given) or given)) for text in expected)
    return _guess(score > ANLS_THRESHOLD, f"ANLS {score if score > ANLS_THRESHOLD else 0:.2f}")


def _certainly(is_correct: bool, reason: str) -> Finding:
    return Finding(is_correct=is_correct, is_certain=True, reason=reason)


def _guess(is_correct: bool, reason: str) -> Finding:
    return Finding(is_correct=is_correct, is_certain=False, reason=f"best guess: {reason}")
