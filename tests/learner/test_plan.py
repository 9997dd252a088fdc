import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.learner import LearnerConfig
from learner.batches.batch import weight_episodes
from learner.batches.plan import IMBALANCE, balance, families_of
from learner.memory import learns_in_rounds
from tests.learner.builders import make_group, plan_of, rows_of

GROUPS = [make_group(seed, group_size=4, size=(112, 112), num_calls=seed % 3) for seed in range(9)]


def families(plans, mini_batch=0):
    return [f for plan in plans for each in plan.mini_batches[mini_batch].micro_batches for f in each]


def cost(families):
    return sum(family.cost for family in families)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("budget", [200, 1000, 10**6])
def test_token_weights_of_all_ranks_sum_to_1(ranks, budget):
    rows = rows_of(plan_of(GROUPS, ranks=ranks, budget=budget))
    assert sum(row.token_weights.sum() for row in rows) == pytest.approx(1.0)


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(3, 9), st.booleans()), min_size=1, max_size=6),
    st.integers(1, 6),
    st.integers(50, 3000),
)
@settings(deadline=None, max_examples=60)
def test_every_scored_episode_is_learned_from_once(drawn, ranks, budget):
    groups = [make_group(seed, group_size=size, lost=(0, 2) if lost else ()) for seed, size, lost in drawn]
    rows = [row for row in rows_of(plan_of(groups, ranks=ranks, budget=budget)) if row.token_weights.any()]
    scored = [
        episode.token_ids
        for group in groups
        for episode, reward in zip(group.played.episodes, group.rewards, strict=True)
        if reward is not None
    ]
    assert sorted(tuple(row.token_ids.tolist()) for row in rows) == sorted(scored)


@pytest.mark.parametrize("num_groups", [1, 3, 5, 9])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_mini_batch_weighs_as_much_as_the_share_of_its_groups(num_groups, ranks):
    """A single group must not move the weights as far as a full mini-batch does."""
    rows = rows_of(plan_of(GROUPS[:num_groups], prompts=9, ranks=ranks))
    assert sum(row.token_weights.sum() for row in rows) == pytest.approx(num_groups / 9)


def groups_of(plan, groups):
    """The groups of each mini-batch, by their seeds."""
    rows = [rows_of([plan], mini_batch=number) for number in range(len(plan.mini_batches))]
    return [{groups[plan.image_groups[row.image]].played.ref.row for row in each} for each in rows]


def test_groups_fill_mini_batches_in_order_and_the_last_may_remain_smaller():
    (only,) = plan_of(GROUPS, prompts=4)
    assert groups_of(only, GROUPS) == [{0, 1, 2, 3}, {4, 5, 6, 7}, {8}]
    assert only.is_open
    (full,) = plan_of(GROUPS[:8], prompts=4)
    assert not full.is_open


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(1, 9))
@settings(deadline=None, max_examples=40)
def test_the_parts_of_an_update_have_its_mini_batches(sizes, prompts):
    whole, joined, num_before = [], [], 0
    for start, stop in itertools.pairwise(min(at, len(GROUPS)) for at in itertools.accumulate(sizes, initial=0)):
        if part := GROUPS[start:stop]:
            (plan,) = plan_of(part, prompts=prompts, num_before=num_before)
            first, *others = groups_of(plan, part)
            joined[-1:] = [joined[-1] | first] if num_before else [*joined[-1:], first]
            joined += others
            num_before = (num_before + len(part)) % prompts
            assert plan.is_open == (num_before > 0)
            whole += part
    (plan,) = plan_of(whole, prompts=prompts)
    assert joined == groups_of(plan, whole)


@given(st.integers(1, 6), st.integers(100, 3000))
@settings(deadline=None, max_examples=40)
def test_no_micro_batch_of_several_rows_exceeds_the_budget(ranks, budget):
    for plan in plan_of(GROUPS, ranks=ranks, budget=budget):
        for micro_batch in plan.mini_batches[0].micro_batches:
            rows = [row for family in micro_batch for row in family.rows]
            assert len(rows) == 1 or sum(family.num_tokens for family in micro_batch) <= budget


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 40])
def test_all_ranks_have_as_many_micro_batches_and_vision_passes(ranks):
    plans = plan_of(GROUPS, prompts=4, ranks=ranks, budget=150, vision=40)
    for count in (lambda piece: len(piece.micro_batches), lambda piece: len(piece.vision_passes)):
        assert len({tuple(map(count, plan.mini_batches)) for plan in plans}) == 1
    assert all(each for plan in plans for piece in plan.mini_batches for each in piece.micro_batches)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("vision", [1, 21, 60, 10**6])
def test_a_rank_encodes_the_views_it_shows_once_each_within_the_budget(ranks, vision):
    for plan in plan_of(GROUPS, ranks=ranks, vision=vision):
        piece = plan.mini_batches[0]
        planned = [key for each in piece.vision_passes for key in each.views]
        assert len(planned) == len(set(planned))
        shown = {key: size for family in families([plan]) for key, size in family.visual_tokens.items()}
        assert set(planned) == set(shown)
        loads = [sum(shown[key] for key in each.views) for each in piece.vision_passes]
        assert all(load <= vision or len(e.views) == 1 for load, e in zip(loads, piece.vision_passes, strict=True))


def test_blocks_are_recomputed_on_all_ranks_or_none():
    """Under ZeRO-3 that gathers their weights once more."""
    groups = [make_group(1, size=(224, 224), ask_share=1.0), make_group(2, size=(112, 112), ask_share=1.0)]
    first, second = plan_of(groups, ranks=2, vision=20)
    recomputed = [[each.recomputes_blocks for each in plan.mini_batches[0].vision_passes] for plan in (first, second)]
    assert recomputed[0] == recomputed[1]
    assert any(recomputed[0])
    assert not any(each.recomputes_blocks for each in plan_of(groups, ranks=2)[0].mini_batches[0].vision_passes)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("vision", [1, 21, 45, 10**6])
@pytest.mark.parametrize("budget", [60, 300, 3000])
def test_rounds_show_the_views_of_their_own_passes_alone_and_are_as_many_on_every_rank(ranks, vision, budget):
    plans = plan_of(GROUPS, ranks=ranks, budget=budget, vision=vision)
    pieces = [plan.mini_batches[0] for plan in plans]
    assert len({piece.stops for piece in pieces}) == 1
    for piece in pieces:
        rounds = piece.rounds()
        assert [each for part in rounds for each in part.micro_batches] == list(piece.micro_batches)
        assert [each for part in rounds for each in part.vision_passes] == list(piece.vision_passes)
        for part in rounds:
            shown = {key for families in part.micro_batches for family in families for key in family.visual_tokens}
            assert {key for each in part.vision_passes for key in each.views} == shown
            assert part.micro_batches
            assert part.vision_passes


def test_the_views_of_a_round_fit_one_vision_pass_unless_a_picture_alone_does_not():
    groups = [make_group(seed, ask_share=1.0) for seed in range(6)]
    (plan,) = plan_of(groups, budget=80, vision=45)
    assert [len(part.vision_passes) for part in plan.mini_batches[0].rounds()] == [1, 1, 1], "two groups of 20 each"
    large = [make_group(seed, size=(224, 224), ask_share=1.0) for seed in (7, 8)]
    (plan,) = plan_of([*groups, *large], budget=80, vision=45)
    passes = [len(part.vision_passes) for part in plan.mini_batches[0].rounds()]
    assert passes[:3] == [1, 1, 1]
    assert len(passes) == 4, "those that are encoded twice anyway are not told apart"
    assert passes[3] > 2


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"zero_stage": 2}, True),
        ({"zero_stage": 3}, False),
        ({"zero_stage": 2, "offload_optimizer": True}, False),
        ({"train_vision": False}, False),
    ],
)
def test_rounds_are_made_only_where_the_towers_activations_can_stay(settings, expected):
    assert learns_in_rounds(LearnerConfig(**settings)) == expected


def test_no_rounds_are_made_where_one_pass_does_or_micro_batches_would_be_too_small():
    groups = [make_group(seed, ask_share=1.0) for seed in range(6)]
    tokens = sum(family.num_tokens for family in families(plan_of(groups)))
    for budget, vision, expected in ((80, 10**6, 1), (8 * tokens, 21, 1), (8 * tokens // 6, 21, 6)):
        (plan,) = plan_of(groups, budget=budget, vision=vision)
        assert len(plan.mini_batches[0].rounds()) == expected, (budget, vision)


def test_a_dummy_weighs_nothing_and_needs_no_picture():
    plans = plan_of([make_group(1)], ranks=12)
    idle = [plan for plan in plans if not any(row.token_weights.any() for row in rows_of([plan]))]
    assert len(idle) == 8
    assert all(plan.image_groups == () and rows_of([plan])[0].prompts == () for plan in idle)


@pytest.mark.parametrize("ranks", [2, 3, 4, 7])
@pytest.mark.parametrize("num_groups", [3, 16])
def test_ranks_get_nearly_the_same_cost(ranks, num_groups):
    groups = [make_group(seed, group_size=8) for seed in range(num_groups)]
    plans = plan_of(groups, ranks=ranks)
    loads = [cost(families([plan])) for plan in plans]
    assert plans[0].workload.imbalance == pytest.approx(max(loads) / (sum(loads) / ranks), rel=0.05)
    assert plans[0].workload.imbalance <= (1.15 if num_groups == 3 else IMBALANCE)


def test_groups_stay_whole_where_ranks_are_equal_without_splitting():
    groups = [make_group(seed, group_size=8) for seed in range(16)]
    found = families(plan_of(groups, ranks=2, budget=2000))
    assert len(found) == len(groups)
    assert all(len(family.rows) == 8 for family in found)


def test_the_ith_micro_batches_of_ranks_cost_about_the_same():
    groups = [make_group(seed, group_size=8, size=((112, 112), (224, 224))[seed % 2]) for seed in range(32)]
    plans = plan_of(groups, ranks=4, budget=3000)
    for micro_batches in zip(*(plan.mini_batches[0].micro_batches for plan in plans), strict=True):
        loads = [cost(each) for each in micro_batches]
        assert max(loads) / min(loads) <= 1.35


def test_splitting_a_group_repeats_its_beginning_and_nothing_else():
    rows = weight_episodes([(0, make_group(1, group_size=8, size=(224, 224)))], 1)
    (whole,) = families_of(rows, 10**6)
    first, second = balance([whole], 2)
    assert sum(len(family.rows) for family in (*first, *second)) == 8
    assert sum(family.num_tokens for family in (*first, *second)) <= whole.num_tokens + whole.num_shared


def test_images_are_numbered_per_rank():
    for plan in plan_of(GROUPS, ranks=3):
        assert {row.image for row in rows_of([plan])} == set(range(len(plan.image_groups)))
        assert list(plan.image_groups) == sorted(set(plan.image_groups))


def test_the_computed_share_is_that_of_the_tokens():
    groups = [make_group(seed, group_size=8, size=(224, 224), ask_share=0.0) for seed in range(16)]
    (only,) = plan_of(groups, budget=4096)
    computed = sum(family.num_tokens for family in families([only]))
    assert only.workload.computed_share == pytest.approx(computed / sum(row.num_tokens for row in rows_of([only])))
    assert only.workload.computed_share < 0.5


def test_a_lone_verdict_missing_everywhere_is_a_broken_invariant():
    with pytest.raises(AssertionError, match="scored episode"):
        plan_of([make_group(1, lost=(0, 1, 2, 3))])
