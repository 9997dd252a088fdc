"""Metrics by step, from the file that a run leaves."""

import json
import math

import pytest

from cluster.records.reading import curve, read_metrics


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    lines = [
        {"step": step, "reward/mean": 0.5 + step / 10, "policy/ask_share": 1 - step / 10, "reward/accuracy": step / 10}
        for step in (1, 2, 3)
    ]
    lines.append({"step": 3, "heldout/accuracy": 0.975, "heldout/ask_share_needed": 0.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "rew')
    return folder


def test_figures_are_read_by_step_and_a_torn_line_is_left_out(run_dir):
    metrics = read_metrics(run_dir)
    assert [figures["step"] for figures in metrics] == [1, 2, 3]
    assert metrics[-1]["heldout/accuracy"] == 0.975
    assert metrics[-1]["reward/mean"] == 0.8
    assert curve(metrics, "heldout/accuracy") == ([3], [0.975])
    assert curve(metrics, "nobody/wrote_this") == ([], [])


def test_a_run_without_figures_has_none(tmp_path):
    assert read_metrics(tmp_path) == []


def test_a_step_is_finite_and_its_figures_may_be_anything_that_is_a_number(tmp_path):
    lines = [
        '{"step": NaN, "a": 1}',
        '{"step": Infinity, "a": 1}',
        '{"step": 1' + "0" * 400 + "}",
        "[" * 200_000,
        "[1]",
    ]
    lines += ['{"step": 2, "learner/loss": NaN, "b": 1' + "0" * 400 + ', "c": 3}', '{"step": "4", "a": 1}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    (figures,) = read_metrics(tmp_path)
    assert figures.keys() == {"step", "learner/loss", "c"}
    assert math.isnan(figures["learner/loss"]), "a skipped update has one"
