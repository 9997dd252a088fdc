"""A resumed run equals one that was never interrupted, bit for bit, on one CPU rank."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from learner.state.checkpoint import CheckpointFolder
from tests.cluster.resumable import make_model, run

ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS = 8


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


def ledger(folder):
    return (folder / "ledger.jsonl").read_text()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
async def test_a_run_dropped_three_times_ends_bit_for_bit_as_one_that_was_not(model, tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    for folder in (straight, broken):
        folder.mkdir()
    expected = await run(straight, NUM_STEPS, model=model)
    for steps in (2, 4, 3):  # before the first checkpoint, after one, and while one is being written
        assert await run(broken, NUM_STEPS, model=model, stop_after=steps) == "stopped"
    assert await run(broken, NUM_STEPS, model=model) == expected
    assert ledger(broken) == ledger(straight)
    assert CheckpointFolder(broken / "run" / "checkpoints").list()[-1] == f"step-{NUM_STEPS:08d}"


def play(folder, num_steps):
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.cluster.resumable", str(folder), str(num_steps)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_killed_at_20_random_moments_ends_bit_for_bit_as_one_that_was_not(tmp_path):
    """Run it with `pytest -n 0 -s -m slow tests/cluster/test_resumed_equals.py`."""
    seed = random.randrange(10**6)
    print(f"the moments are drawn from seed {seed}")
    draw = random.Random(seed)
    make_model(tmp_path / "model")
    num_steps, num_kills = 600, 0  # more than 20 kills at a random moment each get through
    output, problems = play(tmp_path / "straight", num_steps).communicate(timeout=600)
    expected = output.splitlines()[-1] if output else pytest.fail(problems)
    while num_kills < 20:
        before = len(ledger(tmp_path / "broken")) if num_kills else -1
        process = play(tmp_path / "broken", num_steps)
        deadline = time.monotonic() + 120
        while not (tmp_path / "broken" / "ledger.jsonl").exists() or len(ledger(tmp_path / "broken")) == before:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 1.5))
        assert process.poll() is None, "the kill came after the end"
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        num_kills += 1
        print(f"kill {num_kills} after step {len(ledger(tmp_path / 'broken').splitlines())}", flush=True)
    output, problems = play(tmp_path / "broken", num_steps).communicate(timeout=600)
    assert output, problems
    assert output.splitlines()[-1] == expected
    assert ledger(tmp_path / "broken") == ledger(tmp_path / "straight")
