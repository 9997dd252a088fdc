"""Judging by rules: no model, no network, the same verdict every time.

A rule decides only where writing alone settles it: a policy under training finds every rule that is certain and wrong.
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
from judge.rules.asked import AMOUNT, FORM, LABEL, YEAR, certain_option, counts, read_options, says
from judge.rules.guess import is_likely_right
from judge.rules.math_worker import WORKER, looks_like_math
from judge.rules.text import bare, boxed_answer, fold_unicode, same_text
from judge.rules.units import same_quantity
from judge.verdict import Failure, JudgeRequest, NoVerdict, Outcome, Verdict

Metric: TypeAlias = Literal["strict", "relaxed", "anls"]
MAX_CHARS = 400
"""Longer answers are compared as text alone, so that no answer keeps the rules busy."""
MAX_QUESTION_CHARS = 8000
ANLS_THRESHOLD = 0.5
"""ANLS (Biten et al., ICCV 2019, eq. 1): 1 - NL, the best over the references, and 0 where it is not above tau."""


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
        if found := certain_verdict(*texts, metric=self.metric):
            return found
        if self.metric != "anls" and may_be_math(*texts) and await WORKER.is_equal(*map(bare, texts[1:])):
            return _verdict(True, "math-verify: equal")
        if self.is_last:
            return best_guess(*texts, metric=self.metric)
        return NoVerdict(reason="rules cannot tell", failure=Failure.UNDECIDED)


def certain_verdict(question: str, reference: str, prediction: str, *, metric: Metric = "strict") -> Verdict | None:
    """What writing alone settles. Mathematics is left to `RulesJudge`, which may wait for it.

    With `anls` the reference may be a JSON array of right answers. Raises JudgeError where it is empty.
    """
    if not reference.strip():
        raise JudgeError("the reference answer is empty")
    if metric == "anls":
        is_same = fold_unicode(prediction).casefold() in _references(reference)
        return _verdict(True, "same text") if is_same else None
    if fold_unicode(reference) == fold_unicode(prediction):
        return _verdict(True, "same text")
    if max(len(reference), len(prediction)) > MAX_CHARS:
        return None
    question, reference, prediction = question[:MAX_QUESTION_CHARS], bare(reference), bare(prediction)
    if same_text(question, reference, prediction):
        return _verdict(True, "same text")
    if options := read_options(question):
        chosen = [certain_option(options, text) for text in (reference, prediction)]
        return None if None in chosen else _verdict(chosen[0] == chosen[1], f"option {chosen[1]} for {chosen[0]}")
    words = reference.casefold(), prediction.casefold()
    # `NO` and `No` may be chemistry.
    if {*words} <= {"yes", "no"} and not {reference, prediction} >= {"NO", "No"}:
        return _verdict(words[0] == words[1], f"{words[1]} for {words[0]}")
    dates = definite_date(reference), definite_date(prediction)
    if dates[0] and dates[1]:
        return _verdict(dates[0] == dates[1], f"date {dates[1]} for {dates[0]}")
    is_relaxed = metric == "relaxed"
    return _number(question, reference, prediction, is_relaxed) or _quantity(question, reference, prediction)


def best_guess(question: str, reference: str, prediction: str, *, metric: Metric = "strict") -> Verdict:
    """The likelier verdict where nothing is certain."""
    if metric == "anls":
        given = bare(boxed_answer(prediction) or prediction).casefold()
        score = max(Levenshtein.normalized_similarity(text, given) for text in _references(reference))
        is_right, reason = score > ANLS_THRESHOLD, f"ANLS {score if score > ANLS_THRESHOLD else 0:.2f}"
    else:
        question, is_short = question[:MAX_QUESTION_CHARS], max(len(reference), len(prediction)) <= MAX_CHARS
        is_right = is_short and is_likely_right(question, reference, prediction, is_relaxed=metric == "relaxed")
        reason = "the same" if is_right else "something else"
    return _verdict(is_right, f"best guess: {reason}")


def _number(question: str, reference: str, prediction: str, is_relaxed: bool) -> Verdict | None:
    one, other = one_number(reference), one_number(prediction)
    if one is None or other is None or one[1] != other[1]:
        return None
    (expected, around), given = one, other[0]
    is_count = around == "#" and counts(question)
    if not is_count and says(question, LABEL):
        return None
    if expected == given:
        return _verdict(True, "same number")
    values = Fraction(expected), Fraction(given)
    is_year = says(question, YEAR) or (is_year_like(reference) and not is_count)
    # `20 March` and `20 Downing Street` are no amounts.
    is_amount = re.fullmatch(r"-?#%?|[$€£¥₹]-?#", around) and (around.strip("-") != "#" or says(question, AMOUNT))
    if is_relaxed and (is_count or (is_amount and not is_year)) and is_within_5_percent(*values):
        return _verdict(True, "within 5 %")
    # Thousands or millions may stand on the axis.
    if is_count and expected.isdigit() and given.isdigit() and abs(len(expected) - len(given)) < 2:
        return _verdict(False, f"a count of {given} for {expected}")
    return None


def _quantity(question: str, reference: str, prediction: str) -> Verdict | None:
    """Units on both sides; open where the question wants a form or a text, or holds the prediction's number itself."""
    may_be_money = re.search(r"\bpounds?\b", f"{reference} {prediction}")
    numbers = [set(re.findall(r"\d[\d.,]*\b", text)) for text in (question, prediction)]
    is_open = numbers[0] & numbers[1] or may_be_money or says(question, FORM) or says(question, LABEL)
    return _verdict(True, "same quantity") if not is_open and same_quantity(reference, prediction) else None


def may_be_math(question: str, reference: str, prediction: str) -> bool:
    """math-verify is asked: these are expressions, no form is wanted, and no options are listed."""
    is_open = says(question, FORM) or says(question, LABEL) or read_options(question)
    is_new = bare(prediction).replace(" ", "") not in question.replace(" ", "")
    return is_new and not is_open and looks_like_math(bare(reference), bare(prediction))


def _references(text: str) -> list[str]:
    """The texts of a JSON array of texts, or the text itself, without case."""
    try:
        read = json.loads(text) if text.lstrip().startswith("[") else []
    except (ValueError, RecursionError):  # a number may have more digits than Python converts
        read = []
    is_array = isinstance(read, list) and read and all(isinstance(item, str) for item in read)
    return [fold_unicode(item).casefold() for item in (read if is_array else [text])]


def _verdict(is_correct: bool, reason: str) -> Verdict:
    return Verdict(is_correct=is_correct, judge="rules", reason=reason)
