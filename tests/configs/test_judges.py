"""Limits on calls and the sizes of pools speak of the same calls."""

import pytest

from configs.judges import ClusterJudgeConfig, JudgeConfig, LLMJudgeConfig
from configs.load import load_config


def config(chain, max_concurrent, *, cluster=None, **settings):
    llm = LLMJudgeConfig(model="m", max_concurrent=max_concurrent)
    return JudgeConfig(chain=chain, llm=llm, cluster=cluster or ClusterJudgeConfig(), **settings)


@pytest.mark.parametrize(
    ("max_concurrent", "target", "max_replicas", "wanted"),
    [(64, 32.0, 3, 2), (64, 8.0, 9, 8), (256, 64.0, 8, 4), (8, 8.0, 2, 1), (1, 0.5, 3, 2)],
)
def test_a_pool_that_calls_can_never_fill_is_refused_with_the_size_that_they_fill(
    max_concurrent, target, max_replicas, wanted
):
    sizes = {"target_ongoing_requests": target, "max_replicas": max_replicas}
    with pytest.raises(ValueError, match=rf"^judge\.max_replicas={max_replicas} .* at most {wanted},") as refused:
        config(("rules", "openai"), max_concurrent, **sizes)
    assert f"judge.llm.max_concurrent={max_concurrent}" in str(refused.value)
    assert f"judge.target_ongoing_requests={target:g}" in str(refused.value)
    config(("rules", "openai"), max_concurrent, **{**sizes, "max_replicas": wanted})
    cluster = ClusterJudgeConfig(**sizes)
    with pytest.raises(ValueError, match=rf"^judge\.cluster\.max_replicas={max_replicas} "):
        config(("rules", "cluster"), max_concurrent, cluster=cluster, max_replicas=1)


def test_a_pool_of_one_size_and_one_that_nobody_calls_may_be_as_large_as_they_like():
    config(("openai",), 8, min_replicas=4, max_replicas=4)
    config(("rules",), 1, max_replicas=50)
    config(("openai",), 8, max_replicas=1, cluster=ClusterJudgeConfig(max_replicas=50))


def test_the_shipped_run_with_an_llm_can_fill_its_pool():
    judge = load_config("visionthink_7b_4x8gpu").judge
    assert judge.llm.max_concurrent > judge.target_ongoing_requests * (judge.max_replicas - 1)
