"""Signals to a real run: Ray, vLLM and DeepSpeed up, the learner asked to save while a step is under way.

Run it with `pytest -n 0 -s -m slow tests/faults/test_stop.py`.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from actors.data.shapes import make_shapes
from actors.weights.staging import PREFIX
from cluster.stopping import CONTINUE
from configs.paths import ROOT
from learner.state.checkpoint import CheckpointFolder, checkpoint_name

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

GRACE_S = 20
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
AGENTS_END_WITHIN_S = 90.0
"""Ray's agents notice at once that their raylet is gone, and then try for a minute to tell a GCS that is gone too."""
MARK = "VISIONTHINK_TEST_RUN"
"""In the environment of all processes of a run, whatever session they are in."""


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("shapes"), train_rows=64, heldout_rows=8, seed=3)


def start(folder: Path, shapes, *overrides: str) -> subprocess.Popen[str]:
    settings = [
        f"run.dir={folder}",
        f"data.train={shapes['train']}",
        f"data.heldout={shapes['heldout']}",
        "train.num_steps=1000",
        "train.prompts_per_step=8",
        "train.checkpoint_every=1000",
        "learner.prompts_per_mini_batch=4",
        "rollout.group_size=4",
        f"run.stop_grace_s={GRACE_S}",
        *overrides,
    ]
    command = [sys.executable, "-m", "cluster.cli", "train", *settings]
    # A session of its own: what tells the whole group, as a terminal that closes does, tells nobody else.
    environment = {**os.environ, MARK: str(folder)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def await_steps(process: subprocess.Popen[str], folder: Path, num_steps: int) -> None:
    ledger, deadline = folder / "tiny" / "ledger.jsonl", time.monotonic() + 200
    while not ledger.exists() or len(ledger.read_text().splitlines()) < num_steps:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline, f"step {num_steps} did not come"
        time.sleep(0.05)


def left_behind(folder: Path, *, beside: tuple[str, ...] = ()) -> list[str]:
    """The command lines of the processes of a run, but for those that begin with one of `beside`."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        try:
            is_ours = process.environ().get(MARK) == str(folder)
        except psutil.Error:
            continue
        if is_ours and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(" ".join(process.info["cmdline"] or []))
    return [line for line in found if not line.startswith(beside)]


def await_no_agents(folder: Path) -> None:
    deadline = time.monotonic() + AGENTS_END_WITHIN_S
    while (left := left_behind(folder)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left == []


@pytest.mark.parametrize(
    ("number", "to_all"),
    [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGHUP, True), (signal.SIGINT, True)],
    ids=str,
)
def test_a_run_that_gets_a_signal_saves_and_ends_with_a_code_of_its_own(number, to_all, tmp_path, shapes):
    process = start(tmp_path, shapes)
    try:
        await_steps(process, tmp_path, 2)
        time.sleep(0.3)  # into the next step
        told_at = time.monotonic()
        (os.killpg if to_all else os.kill)(process.pid, number)
        errors = process.communicate(timeout=GRACE_S + 5)[1]
        seconds = time.monotonic() - told_at
    finally:
        process.kill()
        process.wait()
    last = errors.splitlines()[-1]
    print(f"{number.name}: {seconds:.1f} s, code {process.returncode}, {last}", flush=True)
    assert process.returncode == 75, errors[-3000:]
    saved = re.fullmatch(rf"stopped by {number.name}: step (\d+) is saved; {re.escape(CONTINUE)}", last)
    assert saved is not None
    checkpoints = CheckpointFolder(tmp_path / "tiny" / "checkpoints")
    assert checkpoints.list() == [checkpoint_name(int(saved[1]))]
    assert checkpoints.find_flaw(checkpoints.list()[0]) is None
    assert "Traceback" not in errors
    assert seconds < GRACE_S
    deadline = time.monotonic() + 30
    while (left := left_behind(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left == []


def test_a_signal_while_the_run_starts_ends_it_within_the_grace_time(tmp_path, shapes):
    process = start(tmp_path, shapes)
    try:
        time.sleep(12)  # its processes come up
        told_at = time.monotonic()
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=GRACE_S + 5)[1]
    finally:
        process.kill()
        process.wait()
    seconds = time.monotonic() - told_at
    print(f"{seconds:.1f} s: {errors.splitlines()[-1]}", flush=True)
    assert process.returncode == 75, errors[-3000:]
    assert errors.splitlines()[-1].startswith("stopped by SIGTERM before a step was finished")
    assert seconds < GRACE_S + 2


@pytest.mark.parametrize("num_threads", [1, 2], ids=["forked engine", "spawned engine"])
def test_a_driver_that_is_killed_leaves_no_process_and_no_shared_memory(num_threads, tmp_path, shapes):
    def shared() -> set[str]:
        return {path.name for path in Path("/dev/shm").iterdir() if path.name.startswith(("psm_", "sem.mp-", PREFIX))}

    before = shared()
    process = start(tmp_path, shapes, f"rollout.num_threads={num_threads}")
    try:
        await_steps(process, tmp_path, 1)
        if num_threads > 1:
            assert shared() - before, "a process that is spawned shares a semaphore by name"
    finally:
        process.kill()
        process.communicate()
    deadline = time.monotonic() + 30
    while (left := left_behind(tmp_path, beside=AGENTS)) or shared() - before:
        assert time.monotonic() < deadline, f"left: {left}, {shared() - before}"
        time.sleep(0.5)
    await_no_agents(tmp_path)
    assert shared() - before == set()
