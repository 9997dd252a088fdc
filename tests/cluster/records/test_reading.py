"""Metrics by step, from the file that a run leaves; and a choice of its episodes."""

import json

import pytest

from cluster.records.reading import choose_episodes, curve, read_metrics


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


def test_chosen_episodes_differ_in_kind_before_they_differ_in_sample():
    def row(sample: str, **changes) -> dict:
        return {"step": 1, "sample": sample, "asked": False, "needs_full": False, "is_correct": True} | changes

    plain = [row(f"0-{n}") for n in range(6)]
    rare = row("0-5", asked=True, is_correct=None)
    chosen = choose_episodes([*plain, rare], 3)
    assert [(row["sample"], row["asked"]) for row in chosen] == [("0-0", False), ("0-5", True), ("0-1", False)]
    assert choose_episodes([*plain, rare], 1) == plain[:1]
    assert choose_episodes([], 3) == []
