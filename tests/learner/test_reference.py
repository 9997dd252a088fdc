"""The reference policy: whole, sharded over two ranks, or in host memory, its log-probabilities are the same."""

import numpy as np
import pytest

from configs.learner import LoraConfig
from tests.learner.builders import make_group, save_model, small_model
from tests.learner.ranks import play, run_script

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
GROUPS = [make_group(1), make_group(2, size=(56, 168))]
HOLDINGS = {
    "sharded": {"zero_stage": 3},
    "sharded in host memory": {"zero_stage": 3, "offload_reference": True},
    "in host memory": {"zero_stage": 1, "offload_reference": True},
    "by the policy, sharded, without its adapters": {"zero_stage": 3, "lora": LoraConfig(rank=4, alpha=8.0)},
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, small_model())
    calls = [("reference", GROUPS), ("update", GROUPS), ("reference", GROUPS), ("exported", None), ("state", None)]

    def script(*holdings):
        common = {"num_threads": 1, "prompts_per_mini_batch": 2, "kl_coefficient": 0.05, "learning_rate": 1e-3}
        return [({"learner": {**common, **held}, "model": {"path": str(folder)}}, calls) for held in holdings]

    return run_script(script({"zero_stage": 0})), play(2, script(*HOLDINGS.values()))


@pytest.mark.parametrize("index", range(len(HOLDINGS)), ids=list(HOLDINGS))
def test_it_scores_alike_however_it_is_held(outcomes, index):
    whole, ranks = outcomes
    expected = whole[0][0]
    for results in ranks:
        before, _, after = results[5 * index : 5 * index + 3]
        for found in (*before, *after):
            # In each of the passes: those that record the order of modules, and those that gather ahead.
            np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("index", [index for index, held in enumerate(HOLDINGS.values()) if "lora" not in held])
def test_the_weights_read_out_are_those_that_were_learned(outcomes, index):
    _, ranks = outcomes
    for results in ranks:
        exported, state = results[5 * index + 3 : 5 * index + 5]
        for name, weight in exported.items():
            assert np.array_equal(weight, state[f"weight/model.{name}"]), name
