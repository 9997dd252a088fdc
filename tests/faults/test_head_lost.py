"""Ray's head dies in the midst of a run: the run ends within minutes, and the same command goes on with it.

Run it with `pytest -n 0 -s -m slow tests/faults/test_head_lost.py`.
"""

import json
import time

import psutil
import pytest

from tests.faults.test_stop import AGENTS, await_no_agents, await_steps, left_behind, shapes, start

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

__all__ = ["shapes"]
ENDS_WITHIN_S = 150.0
"""Ray tries to reach the head again for a minute before it gives its processes up."""
SETTINGS = ("train.num_steps=4", "train.checkpoint_every=1", "eval.num_samples=8")


def head_of(driver: int) -> psutil.Process:
    children = psutil.Process(driver).children(recursive=True)
    return next(process for process in children if process.name() == "gcs_server")


def test_a_run_whose_head_is_killed_ends_and_the_same_command_goes_on_with_it(tmp_path, shapes):
    process = start(tmp_path, shapes, *SETTINGS)
    try:
        await_steps(process, tmp_path, 2)
        head_of(process.pid).kill()
        killed_at = time.monotonic()
        errors = process.communicate(timeout=ENDS_WITHIN_S)[1]
    finally:
        process.kill()
        process.wait()
    print(f"ended after {time.monotonic() - killed_at:.1f} s, code {process.returncode}: {errors[-500:]}", flush=True)
    assert process.returncode not in (0, None)
    deadline = time.monotonic() + 60
    while (left := left_behind(tmp_path, beside=AGENTS)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left == []
    await_no_agents(tmp_path)
    again = start(tmp_path, shapes, *SETTINGS)
    errors = again.communicate(timeout=400)[1]
    assert again.returncode == 0, errors[-3000:]
    ledger = [json.loads(line) for line in (tmp_path / "tiny" / "ledger.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in ledger] == [1, 2, 3, 4]
