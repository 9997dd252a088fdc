import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.batch import computed_tokens, cut_evenly, padded_tokens, plan_mini_batches, weigh_episodes
from tests.learner.builders import make_group

GROUPS = [make_group(seed, group_size=4, size=(112, 112)) for seed in range(9)]


def plan(groups=GROUPS, *, prompts=9, ranks=1, budget=400):
    return plan_mini_batches(groups, prompts_per_mini_batch=prompts, num_ranks=ranks, max_tokens_per_micro_batch=budget)


def rows_of(plans, mini_batch=0):
    return [row for rank in plans for micro_batch in rank.mini_batches[mini_batch] for row in micro_batch]


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("budget", [200, 1000, 10**6])
def test_token_weights_of_all_ranks_sum_to_1(ranks, budget):
    rows = rows_of(plan(ranks=ranks, budget=budget))
    assert sum(row.token_weight * len(row.generated_at) for row in rows) == pytest.approx(1.0)


def test_every_scored_episode_is_learned_from_once():
    groups = [make_group(1, lost=(0, 2)), make_group(2)]
    rows = [row for row in rows_of(plan(groups, ranks=3)) if row.token_weight]
    spoken = sorted(tuple(row.token_ids.tolist()) for row in rows)
    scored = [
        episode
        for group in groups
        for episode, reward in zip(group.played.episodes, group.rewards, strict=True)
        if reward is not None
    ]
    assert spoken == sorted(episode.token_ids for episode in scored)


def test_weights_are_means_over_tokens_then_scored_episodes_then_groups():
    groups = [make_group(1, lost=(0, 2)), make_group(2)]
    rows = weigh_episodes(list(enumerate(groups)), 2)
    for row in rows:
        scored = 2 if row.image == 0 else 4
        assert row.token_weight == pytest.approx(1 / (2 * scored * len(row.generated_at)))


@pytest.mark.parametrize("num_groups", [1, 3, 5, 9])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_mini_batch_weighs_as_much_as_the_share_of_its_groups(num_groups, ranks):
    """A single group must not move the weights as far as a full mini-batch does."""
    rows = rows_of(plan(GROUPS[:num_groups], prompts=9, ranks=ranks))
    assert sum(row.token_weight * len(row.generated_at) for row in rows) == pytest.approx(num_groups / 9)


def test_generated_positions_hold_the_completions_of_the_turns():
    group = make_group(3, ask_share=1.0)
    for row, episode in zip(weigh_episodes([(0, group)], 1), group.played.episodes, strict=True):
        said = tuple(token for turn in episode.turns for token in turn.completion_ids)
        assert tuple(row.token_ids[row.generated_at].tolist()) == said
        assert len(row.sampler_logprobs) == len(said)


def test_groups_fill_mini_batches_evenly_and_in_order():
    (only,) = plan(prompts=4)
    sizes = [len({row.image for micro_batch in each for row in micro_batch}) for each in only.mini_batches]
    assert sizes == [3, 3, 3]
    assert {row.image for row in rows_of([only], mini_batch=1)} == {3, 4, 5}


@given(st.integers(1, 6), st.integers(100, 3000))
@settings(deadline=None, max_examples=40)
def test_no_micro_batch_of_several_rows_exceeds_the_budget(ranks, budget):
    for rank in plan(ranks=ranks, budget=budget):
        for micro_batch in rank.mini_batches[0]:
            assert len(micro_batch) == 1 or padded_tokens(micro_batch) <= budget


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 40])
def test_all_ranks_have_as_many_micro_batches(ranks):
    plans = plan(prompts=4, ranks=ranks, budget=150)
    numbers = {tuple(len(each) for each in rank.mini_batches) for rank in plans}
    assert len(numbers) == 1
    assert all(micro_batch for rank in plans for each in rank.mini_batches for micro_batch in each)


def test_a_dummy_weighs_nothing_and_brings_its_image():
    plans = plan([make_group(1)], ranks=12)
    idle = [rank for rank in plans if not any(row.token_weight for row in rows_of([rank]))]
    assert len(idle) >= 8
    assert all(rank.image_groups == (0,) and rows_of([rank])[0].image == 0 for rank in idle)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_get_nearly_the_same_number_of_tokens(ranks):
    groups = [make_group(seed, group_size=8) for seed in range(16)]
    rows = weigh_episodes(list(enumerate(groups)), 16)
    pieces = cut_evenly(rows, ranks)
    loads = [sum(row.num_tokens for row in piece) for piece in pieces]
    assert [row for piece in pieces for row in piece] == rows
    assert max(loads) / (sum(loads) / ranks) <= 1.05


def test_images_are_numbered_per_rank():
    for rank in plan(ranks=3):
        used = {row.image for row in rows_of([rank])}
        assert used == set(range(len(rank.image_groups)))
        assert list(rank.image_groups) == sorted(set(rank.image_groups))


def test_packing_computes_little_more_than_the_tokens():
    groups = [make_group(seed, group_size=8, size=(224, 224)) for seed in range(16)]
    (only,) = plan(groups, prompts=16, budget=4096)
    useful = sum(row.num_tokens for row in rows_of([only]))
    assert sum(map(padded_tokens, only.mini_batches[0])) / useful < 1.15
    assert sum(map(computed_tokens, only.mini_batches[0])) / useful < 1.35


def test_a_lone_verdict_missing_everywhere_is_a_broken_invariant():
    with pytest.raises(AssertionError, match="scored episode"):
        plan([make_group(1, lost=(0, 1, 2, 3))])
