import re
from dataclasses import replace

import pytest

from cluster.runtime.placement import ClusterSize, capacity_problem, place, wait_for_room
from configs.load import load_config
from configs.schema import Config


def test_the_tiny_run_fits_two_cores():
    assert capacity_problem(Config(), {"CPU": 2.0}) is None


def test_a_cluster_that_can_never_hold_the_run_is_refused_with_what_it_has():
    config = replace(Config(), rollout=replace(Config().rollout, num_workers=64))
    assert re.search(
        r"rollout.num_workers=64.*need 32.5 CPUs, the cluster has 2", str(capacity_problem(config, {"CPU": 2.0}))
    )
    assert re.search(
        "GPUs, the cluster has 0", str(capacity_problem(load_config("visionthink_7b_4x8gpu", []), {"CPU": 999.0}))
    )


def test_the_paper_run_takes_four_nodes_of_eight():
    config = load_config("visionthink_7b_4x8gpu", [])
    assert place(config).total(config).num_gpus == 32


def test_gpus_of_an_llm_judge_count_and_are_named():
    config = load_config("visionthink_7b_4x8gpu", [])
    llm = replace(config.judge.llm, model="judge")
    judge = replace(config.judge, chain=("rules", "cluster"), llm=llm)
    assert place(config).total(replace(config, judge=judge)).num_gpus == 33
    assert re.search(
        r"with 1 GPUs for judge.cluster need 33 GPUs, the cluster has 32",
        str(capacity_problem(replace(config, judge=judge), {"CPU": 999.0, "GPU": 32.0})),
    )


@pytest.mark.parametrize("section", ["rollout", "learner"])
def test_spares_take_what_a_member_takes_but_no_run_waits_for_them(section):
    config = load_config("visionthink_7b_8gpu", [f"{section}.num_spares=1"])
    without = load_config("visionthink_7b_8gpu", [])
    each = getattr(config, section).num_gpus
    assert place(config).total(config).num_gpus == place(without).total(without).num_gpus + each
    assert place(config).least(config) == place(without).least(without)


def sized(now, *, has_autoscaler=False, most=None):
    return ClusterSize(now=now, has_autoscaler=has_autoscaler, most=most)


def rollout(**settings):
    return replace(Config(), rollout=replace(Config().rollout, **settings))


def test_a_range_needs_room_for_its_minimum_only():
    assert capacity_problem(rollout(num_workers="2..64"), {"CPU": 2.0}) is None
    assert re.search(
        r"rollout\.num_workers=4\.\.64.*need 2\.5 CPUs, the cluster has 2",
        str(capacity_problem(rollout(num_workers="4..64"), {"CPU": 2.0})),
    )


def test_a_cluster_of_nothing_is_waited_for_where_it_can_grow_and_refused_where_it_cannot():
    nothing = {}
    with pytest.raises(ValueError, match=r"need 1 CPUs, the cluster has 0: .*rollout\.wait_for_nodes=always"):
        wait_for_room(Config(), sized(nothing))
    waiting = wait_for_room(Config(), sized(nothing, has_autoscaler=True))
    assert waiting is not None
    assert waiting.endswith("waiting up to rollout.wait_timeout_s=1800 for nodes")
    assert wait_for_room(rollout(wait_for_nodes="always"), sized(nothing)) is not None
    with pytest.raises(ValueError, match="the cluster has 0"):
        wait_for_room(rollout(wait_for_nodes="never"), sized(nothing, has_autoscaler=True))


def test_a_cluster_that_is_too_small_at_its_largest_is_refused():
    grown = {"CPU": 0.5}
    with pytest.raises(ValueError, match=r"the cluster has 0\.5 at its largest"):
        wait_for_room(Config(), sized({}, has_autoscaler=True, most=grown))
    assert wait_for_room(Config(), sized({}, has_autoscaler=True, most={"CPU": 8.0})) is not None


def test_nothing_is_waited_for_where_there_is_room():
    assert wait_for_room(Config(), sized({"CPU": 2.0})) is None
