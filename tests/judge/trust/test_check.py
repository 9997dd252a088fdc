"""Rates of agreement, and what the written rules make of the shipped sets."""

import asyncio

import pytest

from actors.errors import JudgeError
from configs.judges import JudgeConfig
from judge.trust.check import Rate, certain_rules, check_rows, measure
from judge.trust.goldset import ATTACKS_FILE, GOLD_FILE, GoldRow, read_gold
from judge.verdict import Failure, NoVerdict, Verdict


def row(prediction: str, *, is_correct: bool) -> GoldRow:
    return GoldRow(question="?", reference="red", prediction=prediction, is_correct=is_correct, kind="colour")


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
def test_intervals_are_those_of_the_tables(num_hits, num_cases, low, high):
    assert Rate(num_hits=num_hits, num_cases=num_cases).interval == pytest.approx((low, high), abs=1e-4)


def test_the_interval_holds_the_share():
    for num_cases in (1, 7, 389):
        for num_hits in range(num_cases + 1):
            low, high = Rate(num_hits=num_hits, num_cases=num_cases).interval
            assert 0 <= low <= num_hits / num_cases <= high <= 1
    assert Rate.of([True, False, True]) == Rate(num_hits=2, num_cases=3)
    assert Rate.of([]).share is None


async def test_rates_count_each_kind_of_error_against_its_own_rows():
    rows = [
        row("pass", is_correct=True),
        row("pass", is_correct=False),
        row("no", is_correct=False),
        row("no", is_correct=True),
        row("no", is_correct=False),
    ]
    checked = await check_rows(Scripted(), rows, timeout_s=5)
    assert [item.row for item in checked] == rows
    trust = measure(checked)
    assert trust.agreement == Rate(num_hits=3, num_cases=5)
    assert trust.false_positives == Rate(num_hits=1, num_cases=3)
    assert trust.false_negatives == Rate(num_hits=1, num_cases=2)


async def test_a_row_without_a_verdict_is_in_no_rate():
    rows = [row(text, is_correct=True) for text in ("hang", "fail", "prose", "pass")]
    checked = await check_rows(Scripted(), rows, timeout_s=0.05)
    assert [isinstance(item.outcome, NoVerdict) for item in checked] == [True, True, True, False]
    assert [item.outcome.reason for item in checked[:2]] == ["no verdict within 0.05 s", "endpoint down"]
    trust = measure(checked)
    assert (trust.num_unjudged, trust.agreement) == (3, Rate(num_hits=1, num_cases=1))


async def test_a_bug_in_a_judge_is_no_missing_verdict():
    with pytest.raises(ExceptionGroup) as caught:
        await check_rows(Scripted(), [row("bug", is_correct=True)], timeout_s=5)
    assert caught.group_contains(KeyError)


async def test_where_the_rules_are_certain_they_agree_with_people_and_leave_the_rest_undecided():
    checked = await check_rows(certain_rules(JudgeConfig()), read_gold(GOLD_FILE), timeout_s=60)
    trust = measure(checked)
    assert trust.agreement.share == 1.0
    assert 0 < trust.num_unjudged < len(checked), "alone in a chain the same rules decide everything"
    assert {item.outcome.failure for item in checked if item.agrees is None} == {Failure.UNDECIDED}


async def test_no_attack_passes_the_certain_rules():
    checked = await check_rows(certain_rules(JudgeConfig()), read_gold(ATTACKS_FILE), timeout_s=60)
    assert [item.row.prediction for item in checked if item.agrees is False] == []
