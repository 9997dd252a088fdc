"""Scores of whole benchmarks, worked by hand."""

import numpy as np
import pytest

from actors.data.benchmarks.row import BenchmarkRow
from judge.benchmarks.scores import SCORES, complete_rows, parts_of


def rows_of(*cells, reference="yes"):
    """(category, unit) each."""
    return [BenchmarkRow(question="?", references=(reference,), categories=(c,), unit=u) for c, u in cells]


def score_of(suite, rows, scores):
    metric = SCORES[suite]
    return metric.of(metric.sums(rows, np.array(scores, dtype=float)).sum(axis=0, keepdims=True))[0]


# MME eval_tool/calculation.py: acc over questions plus acc+ over images, per sub-task, in percent; then the sum.
def test_mme_adds_accuracy_and_accuracy_plus_of_each_sub_task():
    cells = [("count", "a"), ("count", "a"), ("count", "b"), ("count", "b"), ("code_reasoning", "c")]
    rows = rows_of(*cells, ("code_reasoning", "c"))
    # count: 3 of 4 questions (75) and 1 of 2 images (50); code: 1 of 2 questions (50) and no image (0)
    assert score_of("mme", rows, [1, 1, 1, 0, 1, 0]) == 175
    parts = parts_of("mme", rows, np.array([1, 1, 1, 0, 1, 0.0]))
    assert {name: part["score"] for name, part in parts.items()} == {
        "count": 125,
        "perception": 125,
        "code_reasoning": 50,
        "cognition": 50,
    }
    assert score_of("mme", rows, [1] * 6) == 400


def test_an_image_of_mme_without_its_second_question_is_left_out():
    rows = rows_of(("count", "a"), ("count", "b"), ("count", "a"), ("count", "c"))
    assert complete_rows(rows) == [0, 2]
    assert complete_rows(rows_of(("x", ""), ("x", ""))) == [0, 1]


# AoiDragon/POPE evaluate.py.
def test_pope_reports_precision_recall_f1_and_the_share_of_yes():
    truth = ["yes", "yes", "yes", "no", "no"]
    rows = [BenchmarkRow(question="?", references=(label,), categories=("popular",)) for label in truth]
    scores = np.array([1, 1, 0, 0, 1.0])  # TP 2, FN 1, FP 1, TN 1
    assert score_of("pope", rows, scores) == pytest.approx(100 * 2 / 3)  # 2 * 2 / (2 * 2 + 1 + 1)
    part = parts_of("pope", rows, scores)["all"]
    assert (part["accuracy"], part["yes_ratio"], part["n"]) == (60, 60, 5)  # said yes: 2 TP and 1 FP
    assert part["precision"] == part["recall"] == pytest.approx(200 / 3)
    assert score_of("pope", rows, [0] * 5) == 0


def test_ocrbench_is_a_score_of_one_thousand_and_mmvet_a_mean_grade_by_capability():
    rows = [BenchmarkRow(question="?", references=("a",), categories=c) for c in (("ocr", "math"), ("ocr",))]
    assert score_of("ocrbench", rows, [1, 0]) == 500
    assert score_of("mmvet", rows, [0.4, 1.0]) == pytest.approx(70)
    parts = parts_of("mmvet", rows, np.array([0.4, 1.0]))
    assert {name: round(part["score"], 9) for name, part in parts.items()} == {"ocr": 70, "math": 40}
