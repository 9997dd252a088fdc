"""What a group shares, computed once: the same as each episode alone through the library."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.batches.batch import PromptPart, weight_episodes
from learner.batches.family import share, shared_length
from learner.batches.segments import choose_kernel, segments_of
from learner.model import token_logprobs, use_fast_layers
from tests.learner.builders import (
    FIRST_WORD,
    FORBIDDEN_IDS,
    SPECS,
    features_of,
    library_logprobs,
    make_group,
    pieces_of,
    plan_of,
    restore_library,
    small_model,
)

FEW_WORDS = FIRST_WORD + 2
"""A vocabulary of two words: replies share their beginnings, or are equal."""
DRAWN_SETTINGS = st.lists(
    st.fixed_dictionaries(
        {
            "seed": st.integers(0, 10**6),
            "group_size": st.integers(3, 6),
            "size": st.sampled_from([(56, 56), (112, 112), (56, 168), (168, 112)]),
            "ask_share": st.sampled_from([0.0, 0.3, 0.7, 1.0]),
            "lost": st.sampled_from([(), (0,), (1, 2)]),
            "num_words": st.integers(2, 20),
            "vocab_size": st.sampled_from([FEW_WORDS, 96]),
            "num_calls": st.sampled_from([0, 2]),
        }
    ),
    min_size=1,
    max_size=3,
)


def rows_alike(seed, **drawn):
    return weight_episodes([(0, make_group(seed, **drawn))], 1)


def separately(family, groups, upstream):
    """Objective and gradients of every scored episode alone, through the library."""
    restore_library()
    model, total = small_model(family=family), 0.0
    for group in groups:
        for episode, advantage in zip(group.played.episodes, group.advantages, strict=True):
            if advantage is not None:
                for at, logprob, entropy in library_logprobs(model, episode, group.image):
                    total = total + upstream(at) * logprob + 0.1 * entropy
    total.backward()
    return total.item(), {name: p.grad for name, p in model.named_parameters()}


def packed(family, groups, upstream, *, ranks, budget, vision):
    """The same by families, micro-batches and vision passes."""
    model, found = small_model(family=family), 0.0
    use_fast_layers(model)
    plans = plan_of(groups, ranks=ranks, budget=budget, vision=vision)
    for plan, (passes, batches) in zip(plans, pieces_of(plans, groups, SPECS[family]), strict=True):
        features = features_of(model, passes)
        leaf = features.detach().requires_grad_()
        for families, batch in zip(plan.mini_batches[0].micro_batches, batches, strict=True):
            rows = [row for family in families for row in family.rows]
            ats = [at for row in rows for at in row.generated_at.tolist()]
            logprobs, entropies = token_logprobs(model, batch, leaf, temperature=1.0, forbidden_ids=FORBIDDEN_IDS)
            weights = torch.tensor([upstream(at) for at in ats]) * (batch.weights_N > 0)
            total = (weights * logprobs + 0.1 * (batch.weights_N > 0) * entropies).sum()
            total.backward()
            found += total.item()
        features.backward(leaf.grad)
    return found, {name: p.grad for name, p in model.named_parameters()}


DRAWN_BUDGETS = (st.integers(1, 3), st.sampled_from([60, 200, 10**6]), st.sampled_from([1, 20, 10**6]))


@given(DRAWN_SETTINGS, *DRAWN_BUDGETS)
@settings(deadline=None, max_examples=12)
def test_values_and_gradients_are_those_of_each_episode_alone(drawn, ranks, budget, vision):
    check_against_each_alone("qwen2_5_vl", drawn, ranks=ranks, budget=budget, vision=vision)


@given(DRAWN_SETTINGS, *DRAWN_BUDGETS)
@settings(deadline=None, max_examples=3)
def test_values_and_gradients_of_deep_features_are_those_of_each_episode_alone(drawn, ranks, budget, vision):
    check_against_each_alone("qwen3_vl", drawn, ranks=ranks, budget=budget, vision=vision)


def check_against_each_alone(family, drawn, *, ranks, budget, vision):
    groups = [make_group(**each, spec=SPECS[family]) for each in drawn]
    num_tokens = sum(e.num_generated_tokens for group in groups for e in group.played.episodes)

    def upstream(at):
        """A weight that differs between positions."""
        return (1 + at % 7) / num_tokens

    expected, expected_gradients = separately(family, groups, upstream)
    found, gradients = packed(family, groups, upstream, ranks=ranks, budget=budget, vision=vision)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
    for name, gradient in gradients.items():
        largest = expected_gradients[name].abs().max().clamp_min(1.0)
        torch.testing.assert_close(
            gradient / largest, expected_gradients[name] / largest, atol=1e-5, rtol=1e-4, msg=name
        )


@given(
    st.integers(0, 10**6),
    st.integers(2, 6),
    st.floats(0, 1),
    st.integers(2, 12),
    st.sampled_from([FEW_WORDS, 96]),
    st.integers(0, 3),
)
@settings(deadline=None, max_examples=100)
def test_what_is_shared_is_the_longest_common_beginning_without_a_split_picture(seed, size, asks, words, vocab, calls):
    rows = rows_alike(seed, group_size=size, ask_share=asks, num_words=words, vocab_size=vocab, num_calls=calls)
    length = shared_length(rows)
    beginnings = {tuple(row.token_ids[:length].tolist()) for row in rows}
    assert len(beginnings) == 1
    assert length >= rows[0].prompts[0].stop
    assert len({tuple(part for part in row.prompts if part.start < length) for row in rows}) == 1
    assert all(part.stop <= length for row in rows for part in row.prompts if part.start < length)
    longer = {tuple(row.token_ids[: length + 1].tolist()) for row in rows}
    at_end_or_picture = {length} & {at for row in rows for at in (row.num_tokens, *(p.start for p in row.prompts))}
    assert len(longer) > 1 or at_end_or_picture


def test_equal_episodes_are_computed_once():
    first, *_ = rows_alike(1, ask_share=1.0)
    family = share([first, first, first])
    assert family.num_tokens == family.num_shared == first.num_tokens
    assert family.remainders == (0, 0, 0)


def test_equal_tokens_with_different_pictures_are_not_shared():
    first, *_ = rows_alike(1, ask_share=0.0)
    (part,) = first.prompts
    other = replace(first, prompts=(PromptPart(start=part.start, stop=part.stop, view="full", num_visual_tokens=4),))
    assert shared_length([first, other]) == part.start


def test_a_beginning_that_ends_within_a_prompt_ends_before_it():
    asked = rows_alike(1, ask_share=1.0, group_size=3)[0]
    second = asked.prompts[1]
    cut = replace(asked, token_ids=asked.token_ids[: second.start + 2], prompts=asked.prompts[:1])
    assert shared_length([asked, cut]) == second.start


@given(st.lists(st.tuples(st.integers(0, 5), st.lists(st.integers(1, 6), max_size=4)), min_size=1, max_size=4))
def test_both_kernels_are_given_the_same_keys_for_every_token(drawn):
    families = [(shared, tuple(lengths)) for shared, lengths in drawn if shared or lengths]
    if not families:
        return
    expected, start = {}, 0
    for shared, lengths in families:
        for at in range(shared):
            expected[start + at] = set(range(start, start + at + 1))
        own = start + shared
        for length in lengths:
            for at in range(length):
                expected[own + at] = {*range(start, start + shared), *range(own, own + at + 1)}
            own += length
        start = own
    assert seen_by_varlen(segments_of(families, "varlen")) == expected
    assert seen_by_padded(segments_of(families, "padded")) == expected


def seen_by_varlen(segments):
    found = {}
    queries, keys = (each.tolist() for each in (segments.query_starts, segments.key_starts))
    for query, query_stop, key, key_stop in zip(queries, queries[1:], keys, keys[1:], strict=False):
        for at in range(query, query_stop):
            last = key_stop - (query_stop - 1 - at)  # causal from the end
            found[at] = set(segments.key_at_F[key:last].tolist())
    return found


def seen_by_padded(segments):
    seen = []
    for batch in segments.batches:
        assert batch.sees_B1QK.any(-1).all(), "a softmax over nothing"
        for query_at, key_at, sees in zip(batch.query_at_BQ, batch.key_at_BK, batch.sees_B1QK[:, 0], strict=True):
            seen += [
                (int(at), set(key_at[row].tolist()), len(key_at[row])) for at, row in zip(query_at, sees, strict=True)
            ]
    found = {}
    for at, place in enumerate(segments.attended_at_T.tolist()):
        query, keys, num_keys = seen[place]
        assert query == at
        assert len(keys) == num_keys, "no key counts twice"
        found[at] = keys
    return found


@pytest.mark.parametrize(
    ("device", "dtype", "kernel"),
    [
        ("cpu", torch.float32, "padded"),
        ("cuda", torch.float32, "padded"),
        ("cuda", torch.bfloat16, "varlen"),
        ("cpu", torch.bfloat16, "padded"),
    ],
)
def test_flash_attention_needs_a_gpu_and_half_precision(device, dtype, kernel):
    assert choose_kernel(device, dtype) == kernel
