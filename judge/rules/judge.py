"""Judging by written rules: no model, no network, the same verdict every time.

The whole answer must say what the reference says. An answer that merely holds the reference somewhere, such as a list
of all the candidates, is wrong: a policy under training finds every such gap.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, TypeAlias

from actors.errors import JudgeError
from configs.judges import JudgeConfig
from judge.rules.asked import Asked, Order, is_restated, read_question
from judge.rules.closeness import Closeness
from judge.rules.dates import compare_dates
from judge.rules.findings import Finding, Rule, right, wrong
from judge.rules.lists import compare_lists, is_list, is_pair, split_items
from judge.rules.metrics import RELAXED_TOLERANCE, anls
from judge.rules.normalise import boxed_answer, boxed_answers, digits_of, normalise
from judge.rules.numbers import compare_quantities
from judge.rules.options import Options, names_by_number, parse_options
from judge.rules.polarity import compare_polarity
from judge.rules.quantity import Quantity, parse_quantity, words_of
from judge.rules.ranges import compare_several
from judge.rules.ranks import compare_ranks
from judge.rules.signs import compare_signs
from judge.rules.units import has_other_case
from judge.verdict import Failure, JudgeRequest, NoVerdict, Outcome, Verdict

JUDGE_NAME = "rules"
Metric: TypeAlias = Literal["strict", "relaxed", "anls"]

_LEAD_IN = re.compile(
    r"^(?:(?:so|thus|therefore|hence),?\s+)?(?:the\s+|my\s+)?(?:(?:final|correct|right|best)\s+)?"
    r"(?:answer|option|choice)\s*(?:is\s*:?|:)\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class RulesJudge:
    """The rules as a backend of the judge pool."""

    relative_tolerance: float
    """Share of the reference within which two numbers are equal; `relaxed` has its own."""
    metric: Metric = "strict"
    is_last: bool = True
    """Nobody decides after this judge: it gives its best verdict on everything. Otherwise it keeps to what is certain
    and leaves the rest undecided."""

    @classmethod
    def from_config(cls, config: JudgeConfig) -> RulesJudge:
        is_last = config.chain[-1] == "rules"
        return cls(config.relative_tolerance, config.metric, is_last)

    async def grade(self, request: JudgeRequest) -> list[Outcome]:
        """One outcome per prediction; none for any of them when the reference itself is unusable."""
        try:
            return [self._outcome(request, prediction) for prediction in request.predictions]
        except JudgeError as error:
            return [NoVerdict(reason=str(error), failure=Failure.REJECTED) for _ in request.predictions]

    def _outcome(self, request: JudgeRequest, prediction: str) -> Outcome:
        finding = find_by_rules(
            request.question,
            request.reference,
            prediction,
            relative_tolerance=self.relative_tolerance,
            metric=self.metric,
        )
        if finding.is_certain or self.is_last:
            return Verdict(is_correct=finding.is_correct, judge=JUDGE_NAME, reason=finding.reason)
        return NoVerdict(reason=finding.reason, failure=Failure.UNDECIDED)


def find_by_rules(
    question: str,
    reference: str,
    prediction: str,
    *,
    relative_tolerance: float,
    metric: Metric = "strict",
) -> Finding:
    """Whether a prediction says what the reference says, and by which rule.

    What needs no reading (empty, over-long, an announced answer) was settled by `judge/trust/precheck.py`.
    Here, in this order: signs without a letter are compared as such; `\\boxed{}` and `the answer is` are taken off;
    where the question lists options or the reference is a letter, both sides are resolved to a letter; then text,
    numbers, dates, ranks, yes or no, and lists are compared.

    Args:
        question: as asked; read for its options and for what it says of units, shares and order.
        reference: the right answer; with `anls` also a JSON array of right answers.
        prediction: what stood between the answer tags.
        relative_tolerance: share of the reference within which two numbers are equal.
        metric: see `judge/rules/metrics.py`.

    Raises:
        JudgeError: the reference is empty, so nothing can be decided.
    """
    if not reference.strip():
        raise JudgeError("the reference answer is empty")
    if settled := compare_signs(reference, prediction):
        return settled
    if _LEAD_IN.match(reference) and normalise(reference) == normalise(prediction):
        return right(Rule.TEXT)
    expected, given = boxed_answer(reference), boxed_answer(_LEAD_IN.sub("", prediction.strip()))
    if given is None and len(split_items(expected or reference)) > 1:
        given = ", ".join(boxed_answers(prediction))
    if given is None or not given.strip():
        return wrong(Rule.BOXES)
    expected, given = expected or reference, _LEAD_IN.sub("", given.strip())
    if metric == "anls":
        return _by_similarity(expected, given)
    return _Rules.of(question, relative_tolerance, metric).compare(expected, given)


def _by_similarity(reference: str, prediction: str) -> Finding:
    score = anls(reference, prediction)
    if score == 1:
        return right(Rule.TEXT, "ANLS 1")
    return right(Rule.SIMILAR, f"ANLS {score:.2f}") if score > 0 else wrong(Rule.DISSIMILAR, "ANLS 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rules:
    question: str
    asked: Asked
    strict: Closeness
    closeness: Closeness

    @classmethod
    def of(cls, question: str, relative_tolerance: float, metric: Metric) -> _Rules:
        asked = read_question(question)
        strict = Closeness(tolerance=Fraction(str(relative_tolerance)), is_exact_for_integers=True)
        relaxed = Closeness(tolerance=RELAXED_TOLERANCE, is_exact_for_integers=asked.is_year or asked.is_label)
        return cls(question=question, asked=asked, strict=strict, closeness=relaxed if metric == "relaxed" else strict)

    def compare(self, reference: str, prediction: str) -> Finding:
        # One option may lie within 5 % of the next: among them numbers are compared strictly.
        same = replace(self, closeness=self.strict)._same
        options = Options(texts=parse_options(self.question), same=same)
        if chosen := options.compare(reference, prediction):
            return chosen
        finding = self._same(reference, prediction)
        if finding.is_correct or not finding.is_certain:
            return finding
        sides = reference, prediction
        is_number = any(names_by_number(self.question, *pair, same) for pair in (sides, sides[::-1]))
        return right(Rule.LIKELY_OPTION, "by its number") if is_number else finding

    def _same(self, reference: str, prediction: str) -> Finding:
        finding = self._same_content(reference, prediction)
        one, other = (_bracket(text) for text in (reference, prediction))
        if one == other or not finding.is_correct or not finding.is_certain:
            return finding
        if one and other and is_list(reference):
            return right(Rule.ITEMS_UNCLEAR, "open or closed interval")
        quantity = parse_quantity(reference)
        return right(Rule.SIGN) if quantity is not None and quantity.is_bracketed else finding

    def _same_content(self, reference: str, prediction: str) -> Finding:
        if item := self._same_item(reference, prediction):
            return item
        if several := compare_several(reference, prediction, self.asked, self.closeness):
            return several
        if is_list(reference) or is_pair(reference):
            finding = compare_lists(
                reference,
                prediction,
                self._same_item,
                order=self.asked.order if is_list(reference) else Order.FREE,
            )
            if is_list(reference):
                return finding
            if finding.is_correct:
                # `War and Peace` is a title, and cannot be turned round.
                return right(Rule.ITEMS_UNCLEAR, "same")
        return wrong(Rule.OTHER_TEXT)

    def _same_item(self, reference: str, prediction: str) -> Finding | None:
        """Compare as text, number, date, rank, yes or no; None when none of these applies."""
        finding = self._same_in_any_case(reference, prediction)
        is_settled = finding is not None and finding.is_correct and finding.is_certain
        return right(Rule.UNCLEAR_UNIT) if is_settled and has_other_case(reference, prediction) else finding

    def _same_in_any_case(self, reference: str, prediction: str) -> Finding | None:
        if normalise(reference) == normalise(prediction):
            return right(Rule.TEXT)
        expected, given = self._quantity(reference, reference), self._quantity(prediction, reference)
        if expected is not None and given is not None:
            finding = compare_quantities(expected, given, self.asked, self.closeness)
            if finding.is_correct and is_restated(self.question, expected, given):
                return wrong(Rule.RESTATED)
            if finding == wrong(Rule.NUMBER, "different") and _has_same_slashed_digits(reference, prediction):
                return wrong(Rule.FRACTION)
            is_bare = expected.unit is None and given.unit is None
            is_label = self.asked.is_label and is_bare and finding.is_correct and finding.is_certain
            return right(Rule.LABEL) if is_label else finding
        return (
            compare_dates(reference, prediction)
            or compare_ranks(reference, prediction, self.asked)
            or compare_polarity(reference, prediction, self.question)
        )

    def _quantity(self, text: str, reference: str) -> Quantity | None:
        return parse_quantity(text, words_of(self.question, reference))


def _has_same_slashed_digits(reference: str, prediction: str) -> bool:
    """`1 1/2` may have been written as `11/2` where the space was lost."""
    has_slashes = all(re.search(r"[0-9]/[0-9]", text) for text in (reference, prediction))
    return has_slashes and digits_of(reference) == digits_of(prediction)


def _bracket(text: str) -> str:
    """The bracket that opens a text: an interval `[1, 5]` is no `(1, 5)`."""
    opening = text.strip()[:1]
    return opening if opening in ("(", "[") else ""
