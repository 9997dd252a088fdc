"""500 steps under random faults; nothing is lost, learned twice or left behind.

Run it with `pytest -n 0 -s -m slow tests/faults/test_soak.py`; VISIONTHINK_SOAK_SEED repeats a run.
"""

import os
import random

import pytest

from tests.faults.soak import soak

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.filterwarnings("default")]

NUM_STEPS = 500


def test_500_steps_with_random_faults_lose_nothing_and_leave_nothing():
    seed = int(os.environ.get("VISIONTHINK_SOAK_SEED") or random.randrange(10**6))
    print(f"faults are drawn from seed {seed}")
    found = soak(NUM_STEPS, seed)
    print({name: value for name, value in found.items() if name != "looks"})
    assert found["steps"] == NUM_STEPS
    assert found["ledger_whole"]
    assert found["samples_once_in_order"]
    assert sum(found["faults"].values()) > 30
    before, after, looks = found["before"], found["after"], found["looks"]
    assert after["actors"] == before["actors"]
    assert after["processes"] <= before["processes"]
    assert after["store_mb"] <= before["store_mb"] + 0.1
    assert max(look["store_mb"] for look in looks) < 80, "the store, of which the run puts 2 GB of pictures"
    settled, last = looks[len(looks) // 2], looks[-1]
    assert last["rss_mb"] <= settled["rss_mb"] + 40
    assert last["files"] <= settled["files"] + 10
    assert last["threads"] <= settled["threads"] + 5
    assert last["tasks"] <= settled["tasks"] + 10
    assert after["shm_mb"] <= before["shm_mb"] + 0.1
