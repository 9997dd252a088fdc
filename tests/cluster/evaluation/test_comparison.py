"""Shares, over- and under-asking and intervals on plays that are worked by hand."""

from dataclasses import replace

import numpy as np
import pytest

from actors.data.benchmarks.row import BenchmarkRow
from cluster.evaluation.comparison import average, compare
from cluster.evaluation.tables import result_lines, result_tables
from cluster.evaluation.transcript import Play
from judge.benchmarks.scores import SCORES, mean_score

UNIT = mean_score("accuracy", 1.0)


def play(kind, sample, *scores, asked=False, seconds=1.0, needs_full=None, answer="a", **known):
    quarter, full = 16, 64
    tokens = {"policy": quarter + full * asked, "always_quarter": quarter, "always_full": full}[kind]
    return Play(
        kind=kind,
        sample=sample,
        row=0,
        question="?",
        reference="a",
        answer=answer,
        scores=scores,
        asked=asked,
        is_well_formed=True,
        needs_full=needs_full,
        **dict.fromkeys(("need", "is_right_tool", "least_visual_tokens")) | known,
        num_visual_tokens=tokens,
        num_generated_tokens=10,
        seconds=seconds,
    )


def compared(cells, *, suite="heldout", metric=UNIT, rows=None, num_samples=None):
    """Cells: (policy, quarter, full, asked) per sample; None is no verdict."""
    plays = {}
    for at, (policy, quarter, full, asked) in enumerate(cells):
        for kind, score in (("policy", policy), ("always_quarter", quarter), ("always_full", full)):
            scores = () if score is None else score if isinstance(score, tuple) else (score,)
            plays[kind, str(at)] = play(kind, str(at), *scores, asked=asked and kind == "policy")
    rows = rows or [BenchmarkRow(question="?", references=("yes",))] * len(cells)
    known = {str(at): row for at, row in enumerate(rows)}
    return compare(suite, metric, plays, known, num_samples=num_samples or len(cells))


CELLS = [
    (1.0, 1.0, 1.0, False),
    (1.0, 1.0, 1.0, True),  # asked where the quarter view was right
    (1.0, 0.0, 1.0, True),
    (0.0, 0.0, 1.0, False),  # did not ask where only the full view was right
]


def value(comparison, name):
    return comparison.estimates[name].value


def test_the_rows_of_the_paper_by_hand():
    one = compared(CELLS)
    assert (value(one, "score"), value(one, "score_quarter"), value(one, "score_full")) == (0.75, 0.5, 1.0)
    assert (value(one, "share_of_full"), value(one, "share_of_full_quarter")) == (0.75, 0.5)
    assert value(one, "difference_to_full") == -0.25
    assert value(one, "ask_share") == 0.5
    assert value(one, "over_asking") == 0.5  # 1 of the 2 samples that the quarter view answers
    assert value(one, "under_asking") == 0.5  # 1 of the 2 samples that only the full view answers
    assert (one.num_cases("over_asking"), one.num_cases("under_asking"), one.num_cases("score")) == (2, 2, 4)
    assert value(one, "visual_token_share") == (4 * 16 + 2 * 64) / (4 * 64)
    assert value(one, "time_share") == 1.0
    assert value(one, "ask_share_needed") is None
    for name, estimate in one.estimates.items():
        if estimate.value is not None:
            assert estimate.low <= estimate.value <= estimate.high, name


def test_the_gain_by_tools_splits_into_calls_and_prompt():
    """Against always-quarter: 2 gained and 1 lost by calls, 1 gained and 2 lost by the prompt alone."""
    cells = [
        *[(1.0, 0.0, 1.0, True)] * 2,
        (0.0, 1.0, 1.0, True),
        (1.0, 0.0, 1.0, False),
        *[(0.0, 1.0, 1.0, False)] * 2,
        *[(1.0, 1.0, 1.0, False)] * 4,
    ]
    one = compared(cells)
    assert value(one, "tool_gain") == pytest.approx(value(one, "score") - value(one, "score_quarter"))
    assert value(one, "tool_gain") == 0.0
    names = ("tool_gain_by_call", "tool_gain_by_prompt", "tool_harm_by_call", "tool_harm_by_prompt")
    assert [value(one, name) for name in names] == [0.2, 0.1, 0.1, 0.2]


def test_a_sample_without_tools_says_nothing_of_them():
    cells = {"policy": 64, "always_quarter": 64, "always_full": 64}  # too small to quarter
    small = {kind: replace(play(kind, "0", 1.0), num_visual_tokens=tokens) for kind, tokens in cells.items()}
    plays = {(kind, "0"): each for kind, each in small.items()}
    rows = {"0": BenchmarkRow(question="?", references=("yes",))}
    one = compare("heldout", UNIT, plays, rows, num_samples=1)
    assert value(one, "score") == 1.0
    assert value(one, "tool_gain") is None


NEEDS = [
    ("quarter", True, 16, False),
    ("quarter", False, 16, True),
    ("region", True, 20, True),
    ("full", True, 80, True),
    (None, None, None, True),
]


def needing(needs=NEEDS):
    plays = {}
    for at, (need, is_right, least, asked) in enumerate(needs):
        for kind in ("policy", "always_quarter", "always_full"):
            known = {"need": need, "is_right_tool": is_right, "least_visual_tokens": least} if kind == "policy" else {}
            plays[kind, str(at)] = play(kind, str(at), 1.0, asked=asked and kind == "policy", **known)
    rows = {str(at): BenchmarkRow(question="?", references=("yes",)) for at in range(len(needs))}
    return compare("heldout", UNIT, plays, rows, num_samples=len(needs))


def test_right_tools_and_the_optimum_by_hand():
    one = needing()
    shares = [value(one, f"right_tool_share_{need}") for need in ("quarter", "region", "full")]
    assert shares == [0.5, 1.0, 1.0]
    assert value(one, "right_tool_share") == 0.5, "the least of them"
    assert value(one, "visual_token_optimum") == pytest.approx((16 + 16 + 20 + 80) / (4 * 64))
    assert [one.num_cases(f"right_tool_share{n}") for n in ("", "_quarter", "_region")] == [4, 2, 1]
    worst = one.estimates["right_tool_share"]
    assert 0 <= worst.low <= 0.5 <= worst.high <= 1
    certain = [known for known in NEEDS if known[1]]
    perfect = needing(certain * 20)
    assert value(perfect, "right_tool_share") == 1.0
    assert perfect.estimates["right_tool_share"].low == pytest.approx(20 / (20 + 3.8415), rel=1e-3), "Wilson's, of 20"
    assert perfect.num_cases("right_tool_share") == 60
    assert value(compared(CELLS), "right_tool_share_region") is None
    assert "right_tool_share" not in compared(CELLS).estimates


def test_the_table_of_right_tools_stands_where_there_is_more_to_choose_from():
    titles = [table.title for table in result_tables([needing()], {})]
    assert titles[-1] == "Answered after just what is needed, by need"
    plain = {
        (kind, "0"): play(kind, "0", 1.0, **({"need": "full", "is_right_tool": True, "least_visual_tokens": 80}))
        for kind in ("policy", "always_quarter", "always_full")
    }
    rows = {"0": BenchmarkRow(question="?", references=("yes",))}
    one = compare("heldout", UNIT, plain, rows, num_samples=1)
    assert len(result_tables([one], {})) == 2
    assert len(result_tables([one], {}, has_tool_choice=True)) == 3


def test_samples_without_a_verdict_or_a_play_are_in_no_figure_and_counted():
    one = compared([*CELLS, (None, 1.0, 1.0, False)], num_samples=7)
    assert (one.num_compared, one.num_unscored, one.num_lost) == (4, 1, 6)
    assert value(one, "score") == 0.75
    assert result_lines([one]) == [
        "heldout: 3 of 7 samples are in no figure: 6 episodes lost, 1 without a verdict",
    ]


def test_nothing_to_compare_is_no_crash():
    one = compared([(None, None, None, False)])
    assert (one.num_compared, one.estimates.get("score")) == (0, None)
    assert value(one, "ask_share") is None
    assert average([one]) == {}
    assert one.figures()["n"] == 0
    assert len(result_tables([one], {})) == 2


def test_pairs_make_the_interval_of_a_share_narrow():
    """Policy and full are wrong on the same half of the samples: their scores vary, their share does not."""
    one = compared([(float(at % 2), 0.0, float(at % 2), True) for at in range(400)])
    score, share = one.estimates["score"], one.estimates["share_of_full"]
    assert score.high - score.low == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.1)  # the normal approximation
    assert share.value == 1.0
    # No sample differs: Wilson's upper end for 0 of 400 is 3.84 / 403.84, and the full score is 0.5.
    assert (1 - share.low) == pytest.approx(3.8415 / 403.84 / 0.5, rel=1e-3)


def test_a_perfect_score_is_not_certain():
    one = compared([(1.0, 1.0, 1.0, False)] * 100)
    assert one.estimates["score"].low == pytest.approx(100 / (100 + 3.8415), rel=1e-3)  # Wilson
    assert one.estimates["ask_share"].high == pytest.approx(3.8415 / 103.84, rel=1e-3)


def test_the_same_data_give_the_same_intervals():
    assert compared(CELLS).figures() == compared(CELLS).figures()


def test_the_images_of_mme_are_drawn_whole_and_each_sub_task_for_itself():
    cells = [(1.0, 0.0, 1.0, True), (1.0, 1.0, 1.0, True)] * 4
    units = [("count", at // 2) for at in range(6)] + [("scene", 9), ("scene", 9)]
    rows = [BenchmarkRow(question="?", references=("yes",), categories=(c,), unit=f"{c}/{u}") for c, u in units]
    one = compared(cells, suite="mme", metric=SCORES["mme"], rows=rows)
    assert (value(one, "score"), value(one, "score_quarter")) == (400, 100)
    assert one.estimates["score_quarter"].low == 100  # every image has one right answer, in any draw
    assert one.parts["always_quarter"]["perception"]["score"] == 100
    assert one.estimates["share_of_full"].low < 1.0 == one.estimates["share_of_full"].value


def test_judge_noise_is_the_spread_of_whole_scores_over_judgements():
    cells = [((1.0, 0.0), (1.0, 1.0), (1.0, 1.0), False), ((0.0, 0.0), (1.0, 1.0), (1.0, 1.0), False)]
    one = compared(cells)
    assert value(one, "score") == 0.25  # the mean of 0.5 and 0
    assert one.judge_sd["policy"] == pytest.approx(np.std([0.5, 0.0], ddof=1))
    assert (one.judge_sd["always_full"], one.num_judgements) == (0.0, 2)


def test_the_average_over_suites_is_the_mean_of_shares():
    one, other = compared(CELLS), compared([(0.5, 1.0, 1.0, False)] * 4, suite="other")
    means = average([one, other])
    assert means["share_of_full"].value == pytest.approx((0.75 + 0.5) / 2)
    assert means["share_of_full"].low <= 0.625 <= means["share_of_full"].high
    assert "average" in [str(cell) for cell in result_tables([one, other], means)[0].columns[0].cells]
