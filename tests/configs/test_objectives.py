from dataclasses import fields

import pytest

from configs.learner import LearnerConfig
from configs.load import load_config
from configs.objectives import GRPO, OBJECTIVES, Objective


def chosen(*overrides):
    return load_config("tiny", overrides).learner.chosen_objective


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_name_chooses_its_row(name):
    assert chosen(f"learner.objective={name}") == OBJECTIVES[name]


def test_the_default_is_the_paper_s():
    assert chosen() == OBJECTIVES["grpo"] == GRPO == LearnerConfig().chosen_objective
    assert (GRPO.clip_low, GRPO.clip_high, GRPO.kl_coefficient, GRPO.entropy_coefficient) == (0.2, 0.2, 0.001, 0.001)


def test_what_is_set_replaces_what_the_objective_chooses_and_null_does_not():
    found = chosen("learner.objective=dapo", "learner.kl_coefficient=0.01", "learner.clip_low=null")
    assert (found.kl_coefficient, found.clip_low, found.clip_high) == (0.01, 0.2, 0.28)
    assert chosen("learner.objective=dapo", "learner.kl_coefficient=0").kl_coefficient == 0.0, "0 is not null"


def test_each_choice_of_an_objective_is_a_setting():
    assert {field.name for field in fields(Objective)} <= {field.name for field in fields(LearnerConfig)}


STREAM = "learner.stream=true"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["learner.objective=ppo"], "learner.objective: .*'ppo'.*grpo"),
        (["learner.clip_low=0"], r"learner\.clip_low=0\.0.*above 0"),
        (["learner.kl_coefficient=-1"], r"learner\.kl_coefficient=-1.*at least 0"),
        (["learner.turn_credit=-1"], r"learner\.turn_credit=-1.*at least 0"),
        (["learner.importance_band=2,3"], r"learner\.importance_band=\[2\.0, 3\.0\].*around 1"),
        (["learner.importance_correction=mask_tokens"], r"'mask_tokens'.*set learner\.recompute_logprobs=true"),
        ([STREAM, "learner.aggregation=batch_tokens"], r"'batch_tokens'.*must be group_tokens.*learner\.stream=false"),
        (["learner.objective=dr_grpo", "learner.length_normalizer=9"], r"length_normalizer=9.*max_turn_tokens=48"),
        (
            [STREAM, "learner.recompute_logprobs=true", "learner.prompts_per_mini_batch=16"],
            r"recompute_logprobs=True.*learner\.stream=false",
        ),
        (["reward.overlong_tokens=-1"], r"reward\.overlong_tokens=-1.*at least 0"),
        (["reward.overlong_tokens=9", "reward.overlong_buffer=10"], r"overlong_buffer=10.*from 0 to.*=9"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_remedy(overrides, words):
    with pytest.raises(ValueError, match=words):
        load_config("tiny", overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["learner.importance_correction=mask_tokens", "learner.recompute_logprobs=true"],
        ["learner.importance_correction=mask_episodes", "train.max_staleness=1"],
        [STREAM, "learner.aggregation=batch_tokens", "train.max_staleness=1"],
        [STREAM, "learner.recompute_logprobs=true"],
        ["learner.length_normalizer=9"],
    ],
)
def test_what_goes_together_is_accepted(overrides):
    load_config("tiny", overrides)
