"""Which nodes a run needs."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.errors import RunError
from cluster.manifests.launcher import AWS, GCP
from cluster.manifests.members import shares_one_gpu
from cluster.manifests.plan import Group, Machine, cluster_plan
from cluster.runtime.placement import place
from configs.load import load_config
from configs.schema import Config
from tests.cluster.manifests.cases import CASES, TINY, published_shape, with_sizes


def groups(config: Config, **options: object) -> dict[str, Group]:
    return {group.name: group for group in cluster_plan(config, None, **options).groups}


def test_no_member_lands_on_the_head():
    for config in CASES.values():
        assert cluster_plan(config, None).head.ray_cpus == 0


def test_the_paper_run_takes_four_nodes_of_eight_as_placement_says():
    config = load_config("visionthink_7b_4x8gpu", [])
    plan = cluster_plan(config, None)
    assert [(g.name, g.min_nodes, g.max_nodes, g.node.num_gpus) for g in plan.groups] == [
        ("rollouts", 2, 2, 8),
        ("learner", 2, 2, 8),
    ]
    assert plan.max_gpus == place(config).total(config).num_gpus == 32


def test_a_range_becomes_a_range_of_nodes_that_are_never_needed_half():
    found = groups(with_sizes(load_config("visionthink_7b_4x8gpu", []), "2..6", "1..4"))
    assert (found["rollouts"].members_per_node, found["rollouts"].min_nodes, found["rollouts"].max_nodes) == (2, 1, 3)
    assert (found["learner"].members_per_node, found["learner"].min_nodes, found["learner"].max_nodes) == (1, 1, 4)


def test_an_engine_over_several_gpus_stays_on_one_node():
    found = groups(with_sizes(load_config("visionthink_7b_4x8gpu", ["rollout.tensor_parallel_size=2"]), "2..6", 16))
    assert (found["rollouts"].node.num_gpus, found["rollouts"].members_per_node) == (4, 2)


def test_members_that_share_all_on_one_gpu_are_one_group_of_one_node():
    plan = cluster_plan(CASES["3b-one-gpu"], None)
    assert shares_one_gpu(CASES["3b-one-gpu"])
    (shared,) = plan.groups
    assert (shared.name, shared.node.num_gpus, shared.min_nodes, shared.max_nodes) == ("shared", 1, 1, 1)


def test_halves_of_a_gpu_fill_gpus():
    found = groups(with_sizes(load_config("visionthink_3b_2gpu", ["rollout.num_gpus=0.5"]), "1..5", 1))
    assert (found["rollouts"].node.num_gpus, found["rollouts"].min_nodes, found["rollouts"].max_nodes) == (1, 1, 3)


def test_engines_of_an_llm_judge_get_nodes_of_their_own_which_may_all_go():
    judges = groups(CASES["7b-gpu-judges"])["judges"]
    assert (judges.min_nodes, judges.max_nodes, judges.node.num_gpus) == (0, 3, 2)
    assert "judges" not in groups(CASES["7b"])


@settings(max_examples=100, deadline=None)
@given(
    low=st.integers(1, 20),
    more=st.integers(0, 20),
    gpus=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    parallel=st.sampled_from([1, 2, 4]),
    per_node=st.sampled_from([1, 4, 8]),
)
def test_nodes_hold_all_members_at_both_sizes(low, more, gpus, parallel, per_node):
    base = CASES["tiny" if gpus == 0 else "7b"]
    rollout = replace(base.rollout, num_gpus=gpus, tensor_parallel_size=parallel if gpus == 1 else 1)
    config = with_sizes(replace(base, rollout=rollout), f"{low}..{low + more}", 3)
    plan = cluster_plan(config, TINY if gpus == 0 else None, gpus_per_node=per_node)
    group = next(group for group in plan.groups if group.name == "rollouts")
    node, wanted = group.node, place(replace(config, rollout=rollout)).worker
    fits_gpu = node.num_gpus / wanted.num_gpus if wanted.num_gpus else math.inf
    fits_cpu = node.ray_cpus / wanted.num_cpus
    held = int(min(fits_gpu, fits_cpu))
    assert held >= group.members_per_node
    assert group.min_nodes * held >= low
    assert group.max_nodes * held >= low + more
    assert (group.max_nodes - 1) * group.members_per_node < low + more, "no node too many"
    assert node.num_gpus <= max(per_node, wanted.num_gpus)


def test_host_memory_holds_what_is_offloaded_and_shrinks_with_more_ranks():
    config, shape = load_config("visionthink_7b_4x8gpu", []), published_shape("7b")

    def memory(ranks: int, offloads: bool) -> int:
        learner = replace(config.learner, num_ranks=ranks, offload_optimizer=offloads, stream=False)
        plan = cluster_plan(replace(config, learner=learner), shape, gpus_per_node=1)
        return plan.groups[1].node.memory_gib

    share_gib = 16 * shape.num_parameters / 4 / 2**30
    assert memory(4, True) - memory(4, False) == pytest.approx(share_gib, abs=1)
    assert memory(8, False) < memory(4, False)


def test_a_cpu_node_has_memory_for_whatever_ray_places_on_it():
    plan = cluster_plan(CASES["tiny"], TINY)
    rollouts, learner = plan.groups
    assert rollouts.node.memory_gib == learner.node.memory_gib
    assert rollouts.node.memory_gib >= 4


def test_an_unknown_model_and_fixed_sizes_are_said():
    notes = " ".join(cluster_plan(load_config("visionthink_3b_2gpu", []), None).notes)
    assert "rough guess" in notes
    assert "all sizes are fixed" in notes
    known = " ".join(cluster_plan(with_sizes(CASES["7b"], "2..6", "8..16"), published_shape("7b")).notes)
    assert "GiB of GPU memory with 8 ranks" in known
    assert "all sizes are fixed" not in known


@pytest.mark.parametrize("machines", [AWS, GCP], ids=["aws", "gcp"])
@pytest.mark.parametrize("name", CASES)
def test_a_machine_type_holds_what_the_group_needs(name, machines):
    plan = cluster_plan(CASES[name], None, machines=machines)
    kinds = {machine.name: machine for machine in machines}
    for group in plan.groups:
        machine = kinds[group.node.machine]
        assert machine.num_gpus >= group.node.num_gpus
        assert machine.num_cpus >= group.node.ray_cpus
        assert (machine.num_gpus > 0) == (group.node.num_gpus > 0)


def test_two_single_gpu_machines_are_chosen_over_one_of_eight():
    found = groups(load_config("visionthink_7b_4x8gpu", ["rollout.num_workers=2"]), machines=AWS)
    assert (found["rollouts"].node.machine, found["rollouts"].max_nodes) == ("p5.4xlarge", 2)


def test_a_member_that_no_machine_holds_is_refused_with_its_needs():
    small = (Machine(name="small", num_cpus=2, num_gpus=0, memory_gib=4),)
    with pytest.raises(RunError, match=r"no machine type holds one of rollouts: 8 CPUs, 1 GPUs"):
        cluster_plan(load_config("visionthink_7b_4x8gpu", []), None, machines=small)


def test_from_zero_keeps_the_largest_size():
    plan = cluster_plan(CASES["7b"], None)
    assert [(g.min_nodes, g.max_nodes) for g in plan.from_zero().groups] == [(0, 2), (0, 2)]
