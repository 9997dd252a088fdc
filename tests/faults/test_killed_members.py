"""kill -9 of the learner's rank and of the engine's worker in the middle of a step.

    python -m pytest -n 0 -s -m slow tests/faults/test_killed_members.py

The tiny run, about four minutes; where there are two GPUs, engine and learner have one each. It ends with its figures,
and no step is lost or learned from twice.
"""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from actors.data.shapes import make_shapes

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
ON_GPUS = ["model.dtype=bfloat16", "rollout.num_gpus=1", "learner.num_gpus=1"]
NUM_STEPS = 16
START_S, STEP_S = 240, 90
"""Deadlines: until the first step, and for a step in which a member is replaced."""


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(condition, seconds, process):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended"
        assert time.monotonic() < end, f"nothing within {seconds} s"
        time.sleep(0.05)


def kill(process, name):
    """kill -9 of the run's actor of this class."""
    found = [child for child in process.children(recursive=True) if child.name().startswith(f"ray::{name}")]
    assert len(found) == 1, [child.name() for child in process.children(recursive=True)]
    os.kill(found[0].pid, signal.SIGKILL)


def test_a_run_outlives_its_rank_and_its_engine(tmp_path):
    shapes = make_shapes(tmp_path / "shapes", train_rows=4000, heldout_rows=200, seed=0)
    settings = [
        f"run.dir={tmp_path}",
        "run.name=killed",
        f"train.num_steps={NUM_STEPS}",
        f"data.train={shapes['train']}",
        f"data.heldout={shapes['heldout']}",
        *(ON_GPUS if torch.cuda.device_count() >= 2 else []),
    ]
    run = tmp_path / "killed"
    with (tmp_path / "log").open("w") as log:
        process = psutil.Popen(
            [sys.executable, "-m", "cluster.cli", "train", "--json", *settings],
            stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip

    def steps():
        return [line for line in lines(run / "metrics.jsonl") if "time/step_s" in line]

    try:
        wait_for(lambda: len(steps()) >= 3, START_S, process)
        for number, (name, pause_s) in enumerate([("RankHost", 1.5), ("RolloutWorker", 0.4)]):
            before = len(steps())
            time.sleep(pause_s)  # into the update, and into the rollouts
            kill(process, name)
            killed_at = time.monotonic()
            wait_for(lambda before=before: len(steps()) > before + 1, STEP_S, process)
            seconds = time.monotonic() - killed_at
            print(f"\n{number + 1}: {name} killed after step {before}; two steps later after {seconds:.1f} s")
        summary = json.loads(process.communicate(timeout=START_S)[0].splitlines()[-1])
    finally:
        if process.poll() is None:
            process.terminate()
        for event in lines(run / "events.jsonl"):
            print(f"{event['time']:.1f} {event['who']}: {event['kind']}: {event['detail']}")
        print((tmp_path / "log").read_text()[-3000:])
    ledger = lines(run / "ledger.jsonl")
    assert [entry["step"] for entry in ledger] == list(range(1, NUM_STEPS + 1))
    consumed = [uid for entry in ledger for uid in entry["samples"]]
    assert len(consumed) == len(set(consumed))
    assert summary["steps"] == NUM_STEPS
    print("held-out:", summary["heldout"])
    assert summary["heldout"]["accuracy"] >= 0.95
