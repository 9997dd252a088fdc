"""Two ranks over gloo: what one rank does, split."""

import math
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from learner.state.snapshot import ROWS, fill_from_shares
from tests.learner.builders import make_group, save_model, small_model
from tests.learner.ranks import play, run_script

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
SIZES = ((112, 112), (56, 168), (168, 112))
STAGES = (0, 1, 2, 3)
PARTITIONED = (2, 3)
"""Stages in which a rank keeps its share of the gradients alone."""
RESHARDINGS = ((1, 2), (2, 3), (3, 1), (0, 3), (3, 0))
"""ZeRO stage that wrote a state with two ranks, and the one that reads it with three."""
SETTINGS = {
    "prompts_per_mini_batch": 5,
    "max_tokens_per_micro_batch": 300,
    "max_tokens_per_vision_pass": 20,
    "kl_coefficient": 0.05,
    "learning_rate": 2e-5,
    "gradient_checkpointing": True,
    "num_threads": 1,
    "param_persistence_threshold": 0,
}


def drawn_groups(seed):
    """Groups of different numbers of episodes and tokens, with pictures of different sizes."""
    rng = random.Random(seed)
    return [
        make_group(
            10 * seed + index,
            group_size=rng.randint(3, 6),
            size=rng.choice(SIZES),
            num_words=rng.randint(4, 40),
            ask_share=rng.random(),
        )
        for index in range(5)
    ]


BATCHES = [drawn_groups(seed) for seed in range(3)]


def poisoned(group):
    first, *others = group.played.episodes
    turn = replace(first.turns[0], logprobs=(math.nan, *first.turns[0].logprobs[1:]))
    first = replace(first, turns=(turn, *first.turns[1:]))
    return replace(group, played=replace(group.played, episodes=(first, *others)))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Per stage: three updates, one with a NaN on the first rank among them; then one with pictures on one rank."""
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, small_model())
    untied = tmp_path_factory.mktemp("untied")
    save_model(untied, small_model(tied=False))
    first, second, third = BATCHES
    broken = [poisoned(first[0]), *first[1:]]

    def script():
        for stage in STAGES:
            calls = [
                ("update", first),
                ("update", broken),
                ("update", second),
                ("update", third),
                ("state", None),
                ("snapshot", None),
                ("shards", None),
                ("update_with_pictures_on_the_first_rank_only", first),
                ("state", None),
            ]
            yield settings(stage), calls
        for stage in STAGES:
            yield settings(stage, train_vision=False), [("update", first), ("update", second), ("state", None)]
        for stage in PARTITIONED:
            parts = [("update_in_parts", [groups[:1], groups[1:3], groups[3:]]) for groups in BATCHES]
            yield settings(stage), [("begin_in_parts", [third[:2], third[2:3]]), *parts, ("state", None)]
        # All pictures in one pass of the tower, whose graph is kept.
        one_pass = {"max_tokens_per_vision_pass": 10**6}
        yield (
            settings(3, untied, **one_pass),
            [*(("update", groups) for groups in BATCHES), ("state", None), ("shards", None)],
        )

    def settings(stage, model=folder, **changed):
        return {"learner": {**SETTINGS, "zero_stage": stage, **changed}, "model": {"path": str(model)}}

    single, pair = run_script(list(script())), play(2, list(script()))
    of_two = [[of_stage(results, stage).share for results in pair] for stage in STAGES]
    of_one = of_stage(single, 1).share
    resumed = run_script(
        [
            (settings(0), [("restore", of_two[3]), ("state", None), ("update", first)]),
            (settings(1), [("restore", [of_one]), ("state", None), ("update", first)]),
        ],
    )
    three = play(
        3,
        [
            (settings(reads), [("restore", of_two[wrote]), ("state", None), ("exported", None), ("snapshot", None)])
            for wrote, reads in RESHARDINGS
        ]
        + [(settings(1), [("restore_is_refused", of_two[1][:1]), ("state", None)])],
    )
    return single, pair, resumed, three


def of_stage(results, stage):
    names = ("first", "broken", "second", "third", "state", "share", "shards", "text", "after")
    return SimpleNamespace(**dict(zip(names, results[len(names) * stage :], strict=False)))


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_learn_in_three_updates_what_one_does(outcomes, stage):
    single, pair, *_ = outcomes
    alone, both = of_stage(single, stage), of_stage(pair[0], stage)
    assert (both.first.optimizer_step, both.second.optimizer_step, both.third.optimizer_step) == (1, 2, 3)
    for ours, theirs in ((both.first, alone.first), (both.second, alone.second), (both.third, alone.third)):
        for name in ("loss", "grad_norm", "entropy", "mismatch", "clipped", "reference_kl"):
            assert ours.metrics[f"learner/{name}"] == pytest.approx(theirs.metrics[f"learner/{name}"], abs=1e-5), name
    check_alike(both.state, alone.state)


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_with_a_frozen_tower_learn_what_one_does(outcomes, stage):
    single, pair, *_ = outcomes
    start = 9 * len(STAGES) + 3 * stage
    *alone, expected = single[start : start + 3]
    *both, state = pair[0][start : start + 3]
    assert [report.optimizer_step for report in both] == [1, 2]
    for ours, theirs in zip(both, alone, strict=True):
        for name in ("loss", "grad_norm"):
            assert ours.metrics[f"learner/{name}"] == pytest.approx(theirs.metrics[f"learner/{name}"], abs=1e-5), name
    assert not any("visual" in key for key in state)
    check_alike(state, expected)


@pytest.mark.parametrize("stage", PARTITIONED)
def test_two_ranks_learn_in_parts_what_one_does_at_once_even_after_an_update_that_was_not_finished(outcomes, stage):
    single, pair, *_ = outcomes
    start = 12 * len(STAGES) + 5 * PARTITIONED.index(stage)
    _, *both, state = pair[0][start : start + 5]
    alone = of_stage(single, stage)
    for ours, theirs in zip(both, (alone.first, alone.second, alone.third), strict=True):
        assert (ours.optimizer_step, ours.num_tokens) == (theirs.optimizer_step, theirs.num_tokens)
        for name in ("loss", "grad_norm", "entropy", "mismatch", "clipped", "reference_kl"):
            assert ours.metrics[f"learner/{name}"] == pytest.approx(theirs.metrics[f"learner/{name}"], abs=1e-5), name
    check_alike(state, alone.state)


def test_two_ranks_learn_what_one_does_where_the_output_layer_has_weights_of_its_own(outcomes):
    single, pair, *_ = outcomes
    *reports, state, shards = pair[0][-5:]
    assert [report.optimizer_step for report in reports] == [1, 2, 3]
    assert "weight/model.lm_head.weight" in state
    assert shards["model.lm_head.weight"] == (96 * 32 / 2, 96 * 32, 0)
    check_alike(state, single[-2])


def check_alike(state, expected):
    """Weights within 1e-6, and Adam's moments, which are sums of gradients, within 1e-7."""
    assert state.keys() == expected.keys()
    for key, value in state.items():
        limit = 1e-6 if key.startswith("weight/") else 1e-7
        np.testing.assert_allclose(value, expected[key], atol=limit, rtol=0, err_msg=key)


def test_under_zero_3_every_parameter_is_sharded(outcomes):
    _, pair, *_ = outcomes
    for results in pair:
        for name, (held, whole, present) in of_stage(results, 3).shards.items():
            assert held == math.ceil(whole / 2), name
            assert present == 0, name


@pytest.mark.parametrize("stage", STAGES)
def test_both_ranks_hold_the_same_weights_even_where_one_had_no_picture(outcomes, stage):
    _, pair, *_ = outcomes
    first, second = (of_stage(results, stage) for results in pair)
    assert first.text.optimizer_step == second.text.optimizer_step == 4
    assert math.isfinite(first.text.metrics["learner/grad_norm"])
    for ours, theirs in ((first.state, second.state), (first.after, second.after)):
        for key, value in ours.items():
            assert np.array_equal(value, theirs[key]), key


@pytest.mark.parametrize("stage", STAGES)
def test_a_nan_on_one_rank_skips_the_step_on_both(outcomes, stage):
    _, pair, *_ = outcomes
    for results in pair:
        found = of_stage(results, stage)
        assert (found.first.optimizer_step, found.broken.optimizer_step, found.second.optimizer_step) == (1, 1, 2)
        assert found.broken.metrics["learner/skipped_updates"] == 1.0


def test_a_state_saved_by_two_ranks_is_taken_over_by_one(outcomes):
    _, pair, resumed, _ = outcomes
    step, state, report = resumed[:3]
    assert step == 3
    for key, value in of_stage(pair[0], 3).state.items():
        assert np.array_equal(value, state[key]), key
    # One rank that had learned alone goes on to the same figures.
    alone = resumed[5]
    assert report.optimizer_step == alone.optimizer_step == 4
    for name in ("loss", "grad_norm", "reference_kl"):
        assert report.metrics[f"learner/{name}"] == pytest.approx(alone.metrics[f"learner/{name}"], abs=1e-4), name


@pytest.mark.parametrize("place", range(len(RESHARDINGS)))
def test_three_ranks_take_over_what_two_wrote_and_one_takes_over_what_they_write(outcomes, place):
    single, pair, _, three = outcomes
    wrote, _ = RESHARDINGS[place]
    expected = of_stage(pair[0], wrote).state
    shares = []
    for results in three:
        step, state, exported, share = results[4 * place : 4 * place + 4]
        assert step == 3
        for key, value in expected.items():
            assert np.array_equal(state[key], value), key
        for name, weight in exported.items():
            assert np.array_equal(weight, expected[f"weight/model.{name}"]), name
        shares.append(share)
    whole = of_stage(single, 1).share
    target = np.zeros_like(whole.state_3N)
    fill_from_shares(target, whole.pieces, shares, lambda index: shares[index].state_3N, whole.shapes)
    for piece in whole.pieces:
        for row, kind in zip(target, ROWS, strict=True):
            found = row[piece.offset : piece.offset + piece.num_elements]
            assert np.array_equal(found, expected[f"{kind}/{piece.name}"].flatten()), (kind, piece.name)


def test_a_missing_share_is_refused_by_all_ranks_and_changes_none(outcomes):
    *_, three = outcomes
    refusals, states = [results[-2] for results in three], [results[-1] for results in three]
    assert any("are missing" in refusal for refusal in refusals)
    assert all("are missing" in refusal or "could not read" in refusal for refusal in refusals)
    assert all(np.count_nonzero(value) == 0 for key, value in states[0].items() if key.startswith("exp_avg"))
