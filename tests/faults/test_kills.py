"""kill -9 of the driver at five random moments of the default run, the same command given again each time.

Run it with `pytest -n 0 -s -m slow tests/faults/test_kills.py`.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from actors.data.dataset import Dataset, PromptCursor
from actors.data.shapes import make_shapes

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(2400)]

ROOT = Path(__file__).resolve().parents[2]


def num_lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_for_step(process: subprocess.Popen, ledger: Path, step: int) -> None:
    deadline = time.monotonic() + 400
    while num_lines(ledger) < step:
        assert process.poll() is None, f"the run ended before step {step}: {process.communicate()}"
        assert time.monotonic() < deadline, f"step {step} did not come"
        time.sleep(0.05)


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_five_random_kills_leave_no_gap_and_no_duplicate_and_the_run_ends_as_good(tmp_path, max_staleness):
    seed = random.randrange(10**6)
    print(f"the moments are drawn from seed {seed}")
    draw = random.Random(seed)
    shapes = make_shapes(tmp_path / "shapes", seed=0)
    settings = [
        "run.name=tiny",
        f"run.dir={tmp_path}",
        f"data.train={shapes['train']}",
        f"data.heldout={shapes['heldout']}",
        f"train.max_staleness={max_staleness}",
    ]
    command = [sys.executable, "-m", "cluster.cli", "train", "--json", *settings]
    ledger = tmp_path / "tiny" / "ledger.jsonl"
    # Spread over the whole run: in the ledger's steps, then some seconds further, into any stage of the next step.
    for step in sorted(draw.sample(range(19), 5)):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        wait_for_step(process, ledger, step)
        after_s = draw.uniform(0, 4) if step else draw.uniform(5, 60)
        time.sleep(after_s)
        assert process.poll() is None, f"the kill came after the end: {process.communicate()}"
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        print(f"killed {after_s:.1f} s after step {step}, {num_lines(ledger)} steps in the ledger", flush=True)

    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0, ended.stderr[-3000:]
    summary = json.loads(ended.stdout.splitlines()[-1])
    print(summary)
    entries = [json.loads(line) for line in (Path(summary["run"]) / "ledger.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == list(range(1, summary["steps"] + 1))
    consumed = [uid for entry in entries for uid in entry["samples"]]
    num_rows = len(Dataset.open(str(shapes["train"])))
    expected = PromptCursor(dataset="train", num_rows=num_rows, seed=0).take(len(consumed))
    assert consumed == [ref.uid for ref in expected]
    heldout = summary["heldout"]
    assert heldout["accuracy"] >= 0.95 * heldout["accuracy_full"]
    assert heldout["ask_share_needed"] >= 0.9
    assert heldout["ask_share_unneeded"] <= 0.1
