"""A learner on several nodes of a test cluster, one of which is lost in the midst of an update.

The node is lost once the copies of the last update are in place, as in a run, whose steps take seconds where a copy
takes tenths of one: the state then comes from the memory of the other node. A loss before that is tested without
processes (`tests/learner/test_elastic_group.py`).
"""

import asyncio
import functools

import pytest
import ray
from ray.cluster_utils import Cluster
from safetensors.numpy import load_file

from cluster.runtime.placement import Placement, Resources
from configs.schema import ModelConfig
from tests.faults.test_elastic_learner import SIZE, Disturbed, configured, largest_difference, undisturbed
from tests.learner.builders import save_model, small_model

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400), pytest.mark.filterwarnings("default")]
WHOLE_CPU = Resources(num_cpus=1.0, num_gpus=0.0)
QUICK = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 200,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": QUICK})
    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def test_a_lost_node_costs_the_update_in_flight_and_a_new_one_joins(tmp_path, cluster):
    save_model(tmp_path, small_model())
    model = ModelConfig(path=str(tmp_path), min_pixels=SIZE[0] ** 2, max_pixels=SIZE[0] ** 2)
    config = configured(model, num_ranks="1..2", stall_timeout_s=20)
    cluster.add_node(num_cpus=1)
    second = cluster.add_node(num_cpus=1)

    async def disturbed():
        run = Disturbed(config, Placement(worker=WHOLE_CPU, rank=WHOLE_CPU))
        await run.learner.start()
        await run.wait_until_up(2)
        await run.update(0)
        await run.wait_until_copied()
        by_node = {member.node: member.rank for member in run.learner.members()}
        lose_it = functools.partial(cluster.remove_node, second, allow_graceful=False)
        await run.update(1, victim=by_node[second.node_id], act=lose_it)
        assert run.learner.num_ranks == 1
        cluster.add_node(num_cpus=1)
        await run.wait_until_up(2)
        await run.update(2)
        assert run.learner.num_ranks == 2
        await run.learner.export_hf(tmp_path / "disturbed")
        await run.learner.shutdown()
        return [event.detail for event in run.events if event.kind == "reform"]

    lost, joined = asyncio.run(disturbed())
    assert "2 -> 1 ranks" in lost
    assert "1 -> 2 ranks" in joined
    assert lost.endswith("from memory")
    assert joined.endswith("from memory")
    found = load_file(tmp_path / "disturbed" / "model.safetensors")
    difference = largest_difference(found, undisturbed(config, 3, tmp_path / "undisturbed"))
    print(f"largest difference of a weight: {difference:.2e}")
    assert difference <= 1e-6
