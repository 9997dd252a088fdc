"""`visionthink data select` as a person runs it: names over HTTP, real Ray and vLLM, killed on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from actors.data.dataset import Dataset
from actors.data.shapes import make_shapes
from tests.fake_hub import fake_hub

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(420)]

ROOT = Path(__file__).resolve().parents[2]
TINY = {file.name: file.read_bytes() for file in (ROOT / "configs" / "tiny").iterdir() if file.is_file()}
NUM_ROWS, NUM_BEFORE_KILL = 48, 4


def test_a_killed_selection_by_name_goes_on_and_finds_who_needs_the_full_view(tmp_path):
    shapes = make_shapes(tmp_path / "shapes", train_rows=NUM_ROWS, heldout_rows=4, seed=3)
    out = tmp_path / "selected"
    named = ["model.path=org/tiny@v1", "data.train=hf://org/shapes/train", "rollout.max_groups_in_flight=2"]
    command = [sys.executable, "-m", "cluster.cli", "data", "select", *named, "--out", str(out), "--json"]
    with fake_hub() as hub:
        hub.repo("models", "org/tiny").push(TINY, "v1")
        hub.repo("datasets", "org/shapes").push({"train.parquet": shapes["train"].read_bytes()})
        env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        env |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "0"}  # engines of other tests leave it set
        settings = {"cwd": tmp_path, "env": env, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen([*command, f"data.heldout={shapes['heldout']}"], **settings) as killed:
            finished = wait_for_lines(out / "samples.jsonl", NUM_BEFORE_KILL, killed)
            killed.send_signal(signal.SIGKILL)
        done = subprocess.run(
            [*command, f"data.heldout={shapes['heldout']}"],
            cwd=tmp_path,
            env=env | {"HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-4000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["num_tried"], summary["num_judged"], summary["num_lost"]) == (NUM_ROWS, NUM_ROWS, 0)
    lines = (out / "samples.jsonl").read_text().splitlines()
    assert len(lines) == NUM_ROWS, "each sample once"
    assert lines[: len(finished)] == finished
    needs = [row["info"]["use_tool"] for row in pq.read_table(shapes["train"]).to_pylist()]
    selected = pq.read_table(out / "train.parquet").to_pylist()
    assert len(selected) == summary["num_selected"] > 8
    assert all(row["info"]["use_tool"] == needs[row["source_row"]] for row in selected)
    assert len(Dataset.open(str(out / "train.parquet"))) == len(selected)


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[str]) -> list[str]:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        lines = path.read_text().splitlines() if path.exists() else []
        if len(lines) >= count:
            return lines[:count]
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"no {count} lines: {process.communicate()[1][-4000:]}")
