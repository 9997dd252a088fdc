"""The crop task by its shipped command: which of three ways to look a policy learns, and what that costs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with data of its own."""
    folder = tmp_path_factory.mktemp("crop")
    data = [f"data.{split}={folder}/data/crop/{split}.parquet" for split in ("train", "heldout")]
    command = [
        sys.executable,
        "-m",
        "cluster.cli",
        "train",
        "--config",
        "tiny_crop",
        "--json",
        f"run.dir={folder}",
        *data,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1400)
    assert done.returncode == 0, done.stderr[-4000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    steps = [json.loads(line) for line in (folder / "tiny_crop" / "metrics.jsonl").read_text().splitlines()]
    return summary["heldout"], [step for step in steps if "policy/right_tool_share" in step]


def test_before_training_the_right_tool_is_a_matter_of_chance(run):
    """Warm start teaches all three ways as equally likely."""
    _, steps = run
    for need in ("quarter", "region", "full"):
        assert steps[0][f"policy/right_tool_share_{need}"] == pytest.approx(1 / 3, abs=0.15)


def test_the_right_tool_is_learned_for_each_kind_of_question(run):
    heldout, _ = run
    for need in ("quarter", "region", "full"):
        assert heldout[f"right_tool_share_{need}"] >= 0.90
    assert heldout["right_tool_share"] == min(
        heldout[f"right_tool_share_{need}"] for need in ("quarter", "region", "full")
    )


def test_it_is_as_accurate_as_always_full_at_the_least_visual_tokens(run):
    heldout, _ = run
    assert heldout["accuracy"] >= 0.95 * heldout["accuracy_full"]
    assert heldout["visual_token_optimum"] == pytest.approx((1 / 4 + (1 / 4 + 1 / 16) + (1 / 4 + 1)) / 3, abs=0.01)
    assert heldout["visual_token_share"] == pytest.approx(heldout["visual_token_optimum"], abs=0.05)
