"""Settled rows beside the groups of a run."""

import random

import pytest

from actors.errors import RunError
from judge.trust.canary import CanaryWatch, draw_canaries, first_undecided
from judge.trust.check import Rate
from judge.trust.goldset import ATTACKS_FILE, GOLD_FILE, GoldRow, read_gold
from judge.verdict import Failure, NoVerdict, Verdict

PASSED, FAILED = (Verdict(is_correct=is_correct, judge="llm", reason="") for is_correct in (True, False))


def row(prediction: str = "blue", *, is_correct: bool = False) -> GoldRow:
    return GoldRow(question="?", reference="red", prediction=prediction, is_correct=is_correct, kind="x")


def watch() -> CanaryWatch:
    return CanaryWatch(alarm=0.05, stop=0.2)


def rate(num_hits: int) -> float:
    return Rate(num_hits=num_hits, num_cases=200).interval[0]


class Decides:
    """Decides on its own predictions alone."""

    def __init__(self, *predictions):
        self.predictions = predictions

    async def grade(self, request):
        undecided = NoVerdict(reason="", failure=Failure.UNDECIDED)
        return [PASSED if prediction in self.predictions else undecided for prediction in request.predictions]


async def test_a_canary_is_the_first_row_that_no_judge_before_the_llm_decides():
    rows = [row("a"), row("b"), row("c"), row("d")]
    assert await first_undecided(rows, [Decides("a"), Decides("b")]) == rows[2]
    assert await first_undecided(rows, []) == rows[0]
    assert await first_undecided(rows, [Decides("a", "b", "c", "d")]) is None


def test_the_share_is_kept_and_the_same_sample_of_the_same_step_draws_the_same_rows():
    rows = (*read_gold(GOLD_FILE), *read_gold(ATTACKS_FILE))

    def drawn(seed: int) -> list[list[GoldRow]]:
        return [draw_canaries(rows, 0.02, seed=seed, step=n // 100, sample=f"0-{n}") for n in range(5000)]

    assert drawn(0) == drawn(0) != drawn(1)
    hits = [found for found in drawn(0) if found]
    assert 60 <= len(hits) <= 140
    assert all(sorted(map(repr, found)) == sorted(map(repr, rows)) for found in hits[:3]), "every row can follow"
    assert len({found[0] for found in hits}) > 50
    assert draw_canaries(rows, 0.0, seed=0, step=1, sample="0-0") == []
    assert draw_canaries((), 1.0, seed=0, step=1, sample="0-0") == []


def test_one_or_two_misses_never_alarm_however_few_were_asked():
    it = watch()
    assert it.add(row(), PASSED) is None
    assert it.add(row(), PASSED) is None
    assert it.false_positives.interval[0] > 0.2, "the interval alone would have stopped the run"


def test_an_alarm_is_raised_once_with_its_evidence_and_again_only_after_it_was_over():
    it = watch()
    for _ in range(12):
        assert it.add(row(), FAILED) is None
    said = [it.add(row(), PASSED) for _ in range(4)]
    assert [text is not None for text in said] == [False, False, True, False]
    assert "3 of 15" in said[2]
    assert "judge.canary_alarm=0.05" in said[2]
    for _ in range(200):
        assert it.add(row(), FAILED) is None
    for _ in range(16):
        it.add(row(), PASSED)
    assert rate(16) < 0.05 < rate(17)
    assert it.add(row(), PASSED) is not None


def test_a_judge_that_passes_everything_stops_the_run_after_five_rows():
    it = watch()
    for _ in range(4):
        it.add(row(), PASSED)
    with pytest.raises(RunError, match=r"5 of 5.*judge\.canary_stop=0\.2.*--resume"):
        it.add(row(), PASSED)


def test_a_judge_that_went_bad_after_a_long_good_time_is_still_found():
    it = watch()
    for _ in range(5000):
        it.add(row(), FAILED)
    for _ in range(51):
        it.add(row(), PASSED)
    with pytest.raises(RunError):
        it.add(row(), PASSED)


def test_a_judge_within_its_limit_is_left_alone():
    for seed in range(10):
        draw, it = random.Random(seed), watch()
        for _ in range(1000):
            it.add(row(), PASSED if draw.random() < 0.03 else FAILED)  # it raises where it would stop the run


def test_right_rows_and_rows_without_a_verdict_are_no_evidence():
    it = watch()
    for _ in range(20):
        assert it.add(row(is_correct=True), PASSED) is None
        assert it.add(row(), NoVerdict(reason="late")) is None
    assert it.false_positives.num_cases == 0
    assert it.num_canaries == 20
