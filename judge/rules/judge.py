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
_WEIGHT = re.compile(r"\b(?:heav\w+|weigh\w*|mass|lift\w*|carr\w+|load|light\w*)\b")
"""Pounds are no money then."""
_SCALES = [Fraction(10) ** power for power in (-9, -6, -3, -2, 2, 3, 6, 9)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What the rules make of a prediction."""

    is_correct: bool
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
        texts = request.question, request.reference, prediction
        found = certain_finding(*texts, metric=self.metric)
        if found is None and self.metric != "anls" and may_be_math(*texts):
            is_equal = await WORKER.is_equal(bare(request.reference), bare(prediction))
            found = Finding(is_correct=True, reason="math-verify: equal") if is_equal else None
        if found is None and self.is_last:
            found = best_guess(*texts, metric=self.metric)
        if found is None:
            return NoVerdict(reason="rules cannot tell", failure=Failure.UNDECIDED)
        return Verdict(is_correct=found.is_correct, judge=JUDGE_NAME, reason=found.reason)


def certain_finding(question: str, reference: str, prediction: str, *, metric: Metric = "strict") -> Finding | None:
    """What writing alone settles. Mathematics is left to `RulesJudge`, which may wait for it.

    With `anls` the reference may be a JSON array of right answers. Raises JudgeError where it is empty.
    """
    if not reference.strip():
        raise JudgeError("the reference answer is empty")
    texts = _references(reference) if metric == "anls" else [reference]
    fold = str.casefold if metric == "anls" else str
    if fold(fold_unicode(prediction)) in [fold(fold_unicode(text)) for text in texts]:
        return Finding(is_correct=True, reason="same text")
    if metric == "anls" or max(len(reference), len(prediction)) > MAX_CHARS:
        return None
    return _certain(question[:MAX_QUESTION_CHARS], bare(reference), bare(prediction), metric == "relaxed")


def best_guess(question: str, reference: str, prediction: str, *, metric: Metric = "strict") -> Finding:
    """The likelier verdict where nothing is certain."""
    if metric == "anls":
        given = bare(boxed_answer(prediction) or prediction).casefold()
        texts = [fold_unicode(text).casefold() for text in _references(reference)]
        score = max(Levenshtein.normalized_similarity(text, given, score_cutoff=ANLS_THRESHOLD) for text in texts)
        is_right, reason = score > ANLS_THRESHOLD, f"ANLS {score if score > ANLS_THRESHOLD else 0:.2f}"
    elif max(len(reference), len(prediction)) > MAX_CHARS:
        is_right, reason = False, "a long text, and another one"
    else:
        question, is_relaxed = question[:MAX_QUESTION_CHARS], metric == "relaxed"
        is_right = is_likely_right(question, reference, prediction, is_relaxed=is_relaxed)
        reason = "the same" if is_right else "something else"
    return Finding(is_correct=is_right, reason=f"best guess: {reason}")


def _certain(question: str, reference: str, prediction: str, is_relaxed: bool) -> Finding | None:
    if same_text(question, reference, prediction):
        return Finding(is_correct=True, reason="same text")
    if options := read_options(question):
        chosen = [certain_option(options, text) for text in (reference, prediction)]
        return (
            None
            if None in chosen
            else Finding(is_correct=chosen[0] == chosen[1], reason=f"option {chosen[1]} for {chosen[0]}")
        )
    words = reference.casefold(), prediction.casefold()
    # `NO` and `No` may be chemistry.
    if {*words} <= {"yes", "no"} and not {reference, prediction} >= {"NO", "No"}:
        return Finding(is_correct=words[0] == words[1], reason=f"{words[1]} for {words[0]}")
    dates = definite_date(reference), definite_date(prediction)
    if dates[0] and dates[1]:
        return Finding(is_correct=dates[0] == dates[1], reason=f"date {dates[1]} for {dates[0]}")
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
        return Finding(is_correct=True, reason="same number")
    values = Fraction(expected), Fraction(given)
    is_year = says(question, YEAR) or (is_year_like(reference) and not is_count)
    # `20 March` and `20 Downing Street` are no amounts.
    is_amount = re.fullmatch(r"-?#%?|[$€£¥₹]-?#", around) and (around.strip("-") != "#" or says(question, AMOUNT))
    if is_relaxed and (is_count or (is_amount and not is_year)) and is_within_5_percent(*values):
        return Finding(is_correct=True, reason="within 5 %")
    # Thousands or millions may stand on the axis.
    is_scaled = values[0] != 0 and values[1] / values[0] in _SCALES
    if is_count and expected.isdigit() and given.isdigit() and not is_scaled:
        return Finding(is_correct=False, reason=f"a count of {given} for {expected}")
    return None


def _quantity(question: str, reference: str, prediction: str) -> Finding | None:
    """Units on both sides; open where the question wants a form or a text, or holds the prediction's number itself."""
    may_be_difference = says(question, DIFFERENCE) and _TEMPERATURE.search(f"{reference} {prediction}")
    numbers = [set(re.findall(r"\d[\d.,]*\b", text)) for text in (question, prediction)]
    may_be_money = re.search(r"\bpounds?\b", f"{reference} {prediction}") and not says(question, _WEIGHT)
    if may_be_money or numbers[0] & numbers[1] or may_be_difference or says(question, FORM) or says(question, LABEL):
        return None
    return Finding(is_correct=True, reason="same quantity") if same_quantity(reference, prediction) else None


def may_be_math(question: str, reference: str, prediction: str) -> bool:
    """math-verify is asked: these are expressions, no form is wanted, and no options are listed."""
    is_open = says(question, FORM) or says(question, LABEL) or read_options(question)
    is_new = bare(prediction).replace(" ", "") not in question.replace(" ", "")
    return is_new and not is_open and looks_like_math(bare(reference), bare(prediction))


def _references(text: str) -> list[str]:
    """The texts of a JSON array of texts, or the text itself."""
    try:
        texts = json.loads(text) if text.lstrip().startswith("[") else None
    except (json.JSONDecodeError, RecursionError):
        texts = None
    return texts if isinstance(texts, list) and texts and all(isinstance(item, str) for item in texts) else [text]
