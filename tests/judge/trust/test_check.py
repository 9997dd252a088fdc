"""Rates of agreement, and what the written rules make of the shipped sets."""

import asyncio

import pytest

from actors.errors import JudgeError
from judge.rules.judge import RulesJudge
from judge.trust.check import Rate, by_kind, check_rows, measure, percentile, wilson_interval
from judge.trust.goldset import ATTACKS_FILE, GOLD_FILE, GoldRow, read_gold
from judge.verdict import NoVerdict, Verdict

RULES = RulesJudge()


def row(prediction: str, *, is_correct: bool, kind: str = "colour") -> GoldRow:
    return GoldRow(
        question="?",
        reference="red",
        prediction=prediction,
        is_correct=is_correct,
        kind=kind,
        is_decidable_by_rules=True,
    )


class Scripted:
    """Says what the prediction asks for."""

    async def grade(self, request):
        (prediction,) = request.predictions
        if prediction == "hang":
            await asyncio.sleep(3600)
        if prediction == "fail":
            raise JudgeError("endpoint down")
        if prediction == "bug":
            raise KeyError("bug")
        if prediction == "prose":
            return ["1"]
        return [Verdict(is_correct=prediction == "pass", judge="scripted", reason="")]


@pytest.mark.parametrize(
    ("num_hits", "num_cases", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (0, 0, 0.0, 1.0),
        (1, 1000, 0.00018, 0.0056),
    ],
)
def test_wilson_intervals_are_those_of_the_tables(num_hits, num_cases, low, high):
    assert wilson_interval(num_hits, num_cases) == pytest.approx((low, high), abs=1e-4)


def test_the_interval_holds_the_share():
    for num_cases in (1, 7, 389):
        for num_hits in range(num_cases + 1):
            low, high = wilson_interval(num_hits, num_cases)
            assert 0 <= low <= num_hits / num_cases <= high <= 1


async def test_rates_count_each_kind_of_error_against_its_own_rows():
    rows = [
        row("pass", is_correct=True),
        row("pass", is_correct=False),
        row("no", is_correct=False),
        row("no", is_correct=True, kind="other"),
        row("no", is_correct=False, kind="other"),
    ]
    checked = await check_rows(Scripted(), rows, timeout_s=5)
    assert [item.row for item in checked] == rows
    trust = measure(checked)
    assert trust.agreement == Rate(num_hits=3, num_cases=5)
    assert trust.false_positives == Rate(num_hits=1, num_cases=3)
    assert trust.false_negatives == Rate(num_hits=1, num_cases=2)
    assert {kind: trust.agreement.share for kind, trust in by_kind(checked).items()} == {
        "colour": pytest.approx(2 / 3),
        "other": 0.5,
    }


async def test_a_row_without_a_verdict_is_in_no_rate():
    rows = [row(text, is_correct=True) for text in ("hang", "fail", "prose", "pass")]
    checked = await check_rows(Scripted(), rows, timeout_s=0.05)
    assert [isinstance(item.outcome, NoVerdict) for item in checked] == [True, True, True, False]
    trust = measure(checked)
    assert (trust.num_unjudged, trust.agreement.share) == (3, 1.0)
    assert Rate(num_hits=0, num_cases=0).share is None


async def test_a_bug_in_a_judge_is_no_missing_verdict():
    with pytest.raises(ExceptionGroup) as caught:
        await check_rows(Scripted(), [row("bug", is_correct=True)], timeout_s=5)
    assert caught.group_contains(KeyError)


def test_percentiles():
    assert percentile([1, 2, 3, 4], 0.5) == 2
    assert percentile([1, 2, 3, 4], 0.95) == 4
    assert percentile([], 0.5) == 0.0


async def test_the_rules_agree_with_people_where_writing_alone_settles_it():
    rows = [row for row in read_gold(GOLD_FILE) if row.is_decidable_by_rules]
    trust = measure(await check_rows(RULES, rows, timeout_s=5))
    assert len(rows) >= 250
    assert trust.agreement.share >= 0.99
    assert trust.num_unjudged == 0


async def test_rules_never_pass_a_wrong_answer_that_needs_knowledge():
    rows = [row for row in read_gold(GOLD_FILE) if not row.is_decidable_by_rules]
    assert measure(await check_rows(RULES, rows, timeout_s=5)).false_positives.num_hits == 0


async def test_no_attack_passes_the_rules():
    checked = await check_rows(RULES, read_gold(ATTACKS_FILE), timeout_s=5)
    assert [item.row.prediction for item in checked if item.agrees is not True] == []
