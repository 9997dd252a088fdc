"""Metrics by step and the figure of several runs, from the files that a run leaves."""

import json

import pytest
from PIL import Image

from cluster.records.plots import plot_penalties
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


def test_the_runs_of_three_penalties_go_into_one_figure(run_dir, tmp_path):
    out = tmp_path / "figures" / "penalties.png"
    plot_penalties([run_dir, run_dir, run_dir], ["threshold", "always", "never"], out)
    with Image.open(out) as image:
        width, height = image.size
    assert width > height > 400


def test_a_figure_of_a_run_that_never_trained_is_refused(run_dir, tmp_path):
    with pytest.raises(ValueError, match="policy/ask_share"):
        plot_penalties([run_dir, tmp_path], ["a", "b"], tmp_path / "x.png")
    with pytest.raises(ValueError, match="labels"):
        plot_penalties([run_dir], [], tmp_path / "x.png")
