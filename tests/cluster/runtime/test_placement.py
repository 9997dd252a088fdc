from dataclasses import replace

import pytest

from cluster.runtime.placement import check_capacity, place
from configs.load import load_config
from configs.schema import Config


def test_the_tiny_run_fits_two_cores():
    check_capacity(Config(), {"CPU": 2.0})


def test_a_cluster_that_can_never_hold_the_run_is_refused_with_what_it_has():
    config = replace(Config(), rollout=replace(Config().rollout, num_workers=64))
    with pytest.raises(ValueError, match=r"rollout.num_workers=64.*need 32.5 CPUs, the cluster has 2"):
        check_capacity(config, {"CPU": 2.0})
    with pytest.raises(ValueError, match="GPUs, the cluster has 0"):
        check_capacity(load_config("visionthink_7b", []), {"CPU": 999.0})


def test_the_paper_run_takes_four_nodes_of_eight():
    config = load_config("visionthink_7b", [])
    assert place(config).total(config).num_gpus == 32


def test_gpus_of_an_llm_judge_count_and_are_named():
    config = load_config("visionthink_7b", [])
    llm = replace(config.judge.llm, model="judge")
    judge = replace(config.judge, chain=("rules", "cluster"), llm=llm)
    assert place(config).total(replace(config, judge=judge)).num_gpus == 33
    with pytest.raises(ValueError, match=r"with 1 GPUs for judge.cluster need 33 GPUs, the cluster has 32"):
        check_capacity(replace(config, judge=judge), {"CPU": 999.0, "GPU": 32.0})
