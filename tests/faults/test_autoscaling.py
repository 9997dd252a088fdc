"""A cluster without a CPU grows for a run and shrinks after it. Run it with `pytest -n 0 -s -m slow` and this file."""

import pytest

from tests.bench.autoscaling import MOST_NODES, NUM_STEPS, measure

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.filterwarnings("default")]


def test_a_run_brings_up_the_nodes_that_it_needs_uses_them_and_gives_them_back():
    found = measure()
    looks = found.pop("looks")
    print(found)
    assert found["nodes_at_start"] == 0
    assert found["steps"] == NUM_STEPS
    assert found["roles_placed"] == ["learner rank", "rollout worker"]
    assert 2 <= found["nodes_used"] <= found["most_nodes"] <= MOST_NODES
    assert looks[-1]["nodes"] == []
