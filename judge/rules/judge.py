"""Judging by rules: no model, no network, the same verdict every time.

A rule decides only where writing alone settles it; what that takes stands in `_certain`. All else goes on to the next
judge, or gets a best guess where rules stand last. A policy under training finds every rule that is certain and wrong.
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
from judge.rules import asked, guess
from judge.rules.amounts import RELAXED_TOLERANCE, is_close, is_year_like, one_number, plain_number
from judge.rules.dates import definite_date
from judge.rules.math_worker import WORKER, looks_like_math
from judge.rules.options import certain_option, letter_of, read_options
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
        if not finding.is_certain and self.metric != "anls":
            finding = await _check_math(request, prediction) or finding
        if finding.is_certain or self.is_last:
            return Verdict(is_correct=finding.is_correct, judge=JUDGE_NAME, reason=finding.reason)
        return NoVerdict(reason="rules cannot tell", failure=Failure.UNDECIDED)


def find_by_rules(question: str, reference: str, prediction: str, *, metric: Metric = "strict") -> Finding:
    """Whether a prediction says what the reference says. Mathematics is left to `RulesJudge`, which may wait for it.

    Args:
        question: as asked; read for its options and for the kind of answer that it wants.
        reference: the right answer; with `anls` also a JSON array of right answers.
        prediction: what stood between the answer tags.
        metric: `relaxed` takes amounts within 5 %, `anls` text by its similarity.

    Raises:
        JudgeError: the reference is empty, so nothing can be decided.
    """
    if not reference.strip():
        raise JudgeError("the reference answer is empty")
    if fold_unicode(reference) == fold_unicode(prediction):
        return _certainly(True, "same text")
    if metric == "anls":
        return _by_similarity(reference, prediction)
    if max(len(reference), len(prediction)) > MAX_CHARS:
        return _guess(False, "a long text, and another one")
    question = question[:MAX_QUESTION_CHARS]
    expected, given = bare(reference), bare(prediction)
    if settled := _certain(question, expected, given, is_relaxed=metric == "relaxed"):
        return settled
    is_right = guess.is_likely_right(question, reference, prediction, is_relaxed=metric == "relaxed")
    return _guess(is_right, "probably the same" if is_right else "probably something else")


def _certain(question: str, reference: str, prediction: str, *, is_relaxed: bool) -> Finding | None:
    if same_text(question, reference, prediction):
        return _certainly(True, "same text")
    if options := read_options(question):
        chosen = [certain_option(options, text) for text in (reference, prediction)]
        if None not in chosen:
            return _certainly(chosen[0] == chosen[1], f"option {chosen[1]} for {chosen[0]}")
        return None
    if settled := _yes_or_no(question, reference, prediction) or _number(question, reference, prediction, is_relaxed):
        return settled
    dates = definite_date(reference), definite_date(prediction)
    if dates[0] and dates[1]:
        return _certainly(dates[0] == dates[1], f"date {dates[1]} for {dates[0]}")
    return _quantity(question, reference, prediction)


def _yes_or_no(question: str, reference: str, prediction: str) -> Finding | None:
    words = [text.casefold() for text in (reference, prediction)]
    # `NO` and `No` may be chemistry.
    if not {*words} <= {"yes", "no"} or (words[0] == words[1] and {reference, prediction} >= {"NO", "No"}):
        return None
    return _certainly(words[0] == words[1], f"{words[1]} for {words[0]}")


def _number(question: str, reference: str, prediction: str, is_relaxed: bool) -> Finding | None:
    sides = one_number(reference), one_number(prediction)
    if sides[0] is None or sides[1] is None or sides[0][1] != sides[1][1]:
        return None
    (expected, around), (given, _) = sides[0], sides[1]
    is_count = around == "#" and asked.counts(question)
    is_label = not is_count and asked.says(question, asked.LABEL)
    if is_label:
        return None
    if expected == given:
        return _certainly(True, "same number")
    ratio = Fraction(given) / Fraction(expected) if Fraction(expected) else Fraction(0)
    is_year = asked.says(question, asked.YEAR) or (is_year_like(reference) and around == "#" and not is_count)
    is_amount = is_count or ("." in reference or around != "#" or asked.says(question, asked.AMOUNT))
    if is_relaxed and is_amount and not is_year and is_close(Fraction(expected), Fraction(given), RELAXED_TOLERANCE):
        return _certainly(True, "within 5 %")
    # Thousands or millions may stand on the axis.
    is_scale = ratio in [Fraction(10) ** power for power in (-9, -6, -3, -2, 2, 3, 6, 9)]
    if is_count and expected.isdigit() and given.isdigit() and not is_scale:
        return _certainly(False, f"a count of {given} for {expected}")
    return None


def _quantity(question: str, reference: str, prediction: str) -> Finding | None:
    """Units on both sides. Temperatures where a difference may be meant, and a quantity of the question, are open."""
    if not (re.search(r"\d", reference) and re.search(r"\d", prediction)) or plain_number(prediction):
        return None
    is_temperature = re.search(r"°|deg|kelvin|celsius|fahrenheit|\dK|\bK\b", f"{reference} {prediction}", re.IGNORECASE)
    if is_temperature and asked.says(question, asked.DIFFERENCE):
        return None
    if asked.says(question, asked.FORM) or asked.says(question, asked.READING) or _numbers(prediction) & _numbers(question):
        return None
    same = same_quantity(reference, prediction, is_difference=False)
    return _certainly(True, "same quantity") if same else None


def _numbers(text: str) -> set[str]:
    return set(re.findall(r"\d[\d.,]*\b", text))


async def _check_math(request: JudgeRequest, prediction: str) -> Finding | None:
    """Right where math-verify says so; it is never asked what is wrong, nor where a form is asked for."""
    question, expected, given = request.question, bare(request.reference), bare(prediction)
    if not looks_like_math(expected, given) or asked.says(question, asked.FORM) or read_options(question):
        return None
    if given.replace(" ", "") in question.replace(" ", "") or asked.says(question, asked.LABEL):
        return None
    return _certainly(True, "math-verify: equal") if await WORKER.is_equal(expected, given) else None


def _by_similarity(reference: str, prediction: str) -> Finding:
    sides = [" ".join(fold_unicode(text).casefold().split()) for text in (*_alternatives(reference), prediction)]
    *expected, given = sides
    if given in expected:
        return _certainly(True, "same text")
    given = " ".join(bare(boxed_answer(given) or given).split())
    score = max(Levenshtein.normalized_similarity(text, given) for text in expected)
    return _guess(score > ANLS_THRESHOLD, f"ANLS {score if score > ANLS_THRESHOLD else 0:.2f}")


def _alternatives(reference: str) -> list[str]:
    """`["IBM", "I.B.M."]` -> its texts; anything that is not a JSON array of texts is one reference."""
    if reference.lstrip().startswith("["):
        try:
            texts = json.loads(reference)
        except (json.JSONDecodeError, RecursionError):
            return [reference]
        if isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts):
            return texts
    return [reference]


def _certainly(is_correct: bool, reason: str) -> Finding:
    return Finding(is_correct=is_correct, is_certain=True, reason=reason)


def _guess(is_correct: bool, reason: str) -> Finding:
    return Finding(is_correct=is_correct, is_certain=False, reason=f"best guess: {reason}")
