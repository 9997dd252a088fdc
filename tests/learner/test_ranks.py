"""Two ranks over gloo: what one rank does, split."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.learner.builders import make_group, save_model, small_model
from tests.learner.ranks import play, run_script

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
GROUPS = [make_group(seed) for seed in range(5)]
STAGES = (0, 1, 2, 3)
SETTINGS = {"prompts_per_mini_batch": 5, "max_tokens_per_micro_batch": 300, "kl_coefficient": 0.05}


def poisoned(group):
    first, *others = group.played.episodes
    turn = replace(first.turns[0], logprobs=(math.nan, *first.turns[0].logprobs[1:]))
    first = replace(first, turns=(turn, *first.turns[1:]))
    return replace(group, played=replace(group.played, episodes=(first, *others)))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Per stage: an update, one with a NaN on the first rank alone, another update, the weights, a saved state."""
    folder, saved = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("saved")
    save_model(folder, small_model())
    broken = [poisoned(GROUPS[0]), *GROUPS[1:]]
    calls = [("update", GROUPS), ("update", broken), ("update", GROUPS), ("weights", None)]

    def script(name):
        places = [saved / f"{name}{stage}" for stage in STAGES]
        for place in places:
            place.mkdir()
        return [
            ({**SETTINGS, "zero_stage": stage}, [*calls, ("save", place)])
            for stage, place in zip(STAGES, places, strict=True)
        ]

    single, pair = run_script(folder, script("one")), play(2, folder, script("two"))
    resumed = run_script(
        folder,
        [
            ({**SETTINGS, "zero_stage": 0}, [("load", saved / "two2"), ("weights", None), ("update", GROUPS)]),
            ({**SETTINGS, "zero_stage": 1}, [("load", saved / "one1"), ("weights", None), ("update", GROUPS)]),
        ],
    )
    return single, pair, resumed


def of_stage(results, stage):
    return results[5 * stage : 5 * stage + 4]


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_learn_what_one_does(outcomes, stage):
    single, pair, _ = outcomes
    *_, alone = of_stage(single, stage)
    first, _, third, weights = of_stage(pair[0], stage)
    assert (first.optimizer_step, third.optimizer_step) == (1, 2)
    expected = of_stage(single, stage)[0].metrics
    for name in ("loss", "grad_norm", "entropy", "mismatch", "clipped"):
        assert first.metrics[f"learner/{name}"] == pytest.approx(expected[f"learner/{name}"], abs=1e-5), name
    for name, weight in weights.items():
        np.testing.assert_allclose(weight, alone[name], atol=2e-5, rtol=0, err_msg=name)


@pytest.mark.parametrize("stage", STAGES)
def test_both_ranks_hold_the_same_weights(outcomes, stage):
    _, pair, _ = outcomes
    ours, theirs = (of_stage(results, stage)[3] for results in pair)
    for name, weight in ours.items():
        assert np.array_equal(weight, theirs[name]), name


@pytest.mark.parametrize("stage", STAGES)
def test_a_nan_on_one_rank_skips_the_step_on_both(outcomes, stage):
    _, pair, _ = outcomes
    for results in pair:
        first, broken, third, _ = of_stage(results, stage)
        assert (first.optimizer_step, broken.optimizer_step, third.optimizer_step) == (1, 1, 2)
        assert broken.metrics["learner/skipped_updates"] == 1.0


def test_a_state_saved_by_two_ranks_is_taken_over_by_one(outcomes):
    _, pair, resumed = outcomes
    step, weights, report = resumed[:3]
    assert step == 2
    for name, weight in of_stage(pair[0], 2)[3].items():
        assert np.array_equal(weight, weights[name]), name
    # One rank that had learned alone goes on to the same figures.
    alone = resumed[5]
    assert report.optimizer_step == alone.optimizer_step == 3
    for name in ("loss", "grad_norm", "reference_kl"):
        assert report.metrics[f"learner/{name}"] == pytest.approx(alone.metrics[f"learner/{name}"], abs=1e-4), name
