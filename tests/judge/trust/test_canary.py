"""Settled rows beside the groups of a run."""

import random

import pytest

from actors.errors import RunError
from configs.judges import JudgeConfig
from judge.chain import Chain
from judge.rules.judge import RulesJudge
from judge.trust.canary import CanaryWatch, canary_request, canary_rows, draw_canary
from judge.trust.check import wilson_interval
from judge.trust.goldset import ATTACKS_FILE, GOLD_FILE, GoldRow, read_gold
from judge.trust.precheck import Precheck
from judge.verdict import NoVerdict, Verdict
from tests.judge.scripted import llm_config

PASSED, FAILED = (Verdict(is_correct=is_correct, judge="llm", reason="") for is_correct in (True, False))


def row(*, is_correct: bool = False) -> GoldRow:
    return GoldRow(
        question="?", reference="red", prediction="blue", is_correct=is_correct, kind="x", is_decidable_by_rules=True
    )


def watch() -> CanaryWatch:
    return CanaryWatch(alarm=0.05, stop=0.2)


def test_rules_alone_are_not_asked_what_needs_knowledge_and_an_llm_behind_rules_is_asked_nothing_else():
    alone = canary_rows(JudgeConfig())
    assert len(alone) > 300
    assert all(row.is_decidable_by_rules for row in alone)
    behind = canary_rows(llm_config())
    assert sum(not row.is_correct for row in behind) > 100
    assert sum(row.is_correct for row in behind) > 20


@pytest.mark.parametrize(("chain", "front"), [(("rules", "openai"), ("rules",)), (("openai",), ())])
async def test_a_canary_of_an_llm_is_a_row_that_reaches_it(chain, front):
    config = llm_config(chain=chain)
    judges = [Precheck(max_answer_chars=config.max_answer_chars)]
    judges += [RulesJudge.from_config(config)] if front else []
    before_the_llm = Chain(judges=judges)
    reaching = []
    for candidate in (*read_gold(GOLD_FILE), *read_gold(ATTACKS_FILE)):
        (outcome,) = await before_the_llm.grade(canary_request(candidate))
        if isinstance(outcome, NoVerdict):
            reaching.append(candidate)
    # What math-verify may settle is left out, whether it does or not.
    rows = canary_rows(config)
    assert [row for row in reaching if row in rows] == list(rows)
    assert len(rows) > 0.95 * len(reaching)


def test_the_share_is_kept_and_the_same_sample_of_the_same_step_draws_the_same_row():
    rows = canary_rows(JudgeConfig())

    def drawn(seed: int) -> list[GoldRow | None]:
        return [draw_canary(rows, 0.02, seed=seed, step=n // 100, sample=f"0-{n}") for n in range(5000)]

    assert drawn(0) == drawn(0) != drawn(1)
    assert 60 <= sum(row is not None for row in drawn(0)) <= 140
    assert len({row.prediction for row in drawn(0) if row}) > 50
    assert draw_canary(rows, 0.0, seed=0, step=1, sample="0-0") is None
    assert draw_canary((), 1.0, seed=0, step=1, sample="0-0") is None
    assert draw_canary(rows, 1.0, seed=0, step=1, sample="0-0") in rows
    assert canary_request(row()).predictions == ("blue",)


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
    assert wilson_interval(16, 200)[0] < 0.05 < wilson_interval(17, 200)[0]
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
