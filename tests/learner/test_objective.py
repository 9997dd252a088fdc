"""Eq. 3 on a real model: what the learner computes against the same thing written out slowly."""

import math

import pytest
import torch
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

from learner.loss import LossInputs, grpo_loss
from learner.model import token_logprobs, use_fast_layers
from tests.learner.builders import (
    FORBIDDEN_IDS,
    features_of,
    library_logprobs,
    make_group,
    pieces_of,
    plan_of,
    small_model,
)

LOW, HIGH, BETA, ENTROPY = 0.2, 0.3, 0.05, 0.01
GROUPS = [
    make_group(1, size=(112, 112)),
    make_group(2, size=(56, 168), lost=(1,)),
    make_group(3, size=(112, 112), ask_share=1.0, group_size=3, num_calls=2),
]
LIBRARY_ATTENTION = qwen.Qwen2_5_VLVisionAttention.forward


def slow_loss(policy, reference):
    """Eq. 3 by the book: episode by episode, token by token, means of means."""
    group_means = []
    for group in GROUPS:
        episode_means = []
        for episode, advantage in zip(group.played.episodes, group.advantages, strict=True):
            if advantage is None:
                continue
            old = [logprob for turn in episode.turns for logprob in turn.logprobs]
            with torch.no_grad():
                frozen = library_logprobs(reference, episode, group.image)
            terms = []
            for (_, logprob, entropy), (_, ref, _), sampled in zip(
                library_logprobs(policy, episode, group.image), frozen, old, strict=True
            ):
                ratio = torch.exp(logprob - sampled)
                clipped = min(max(ratio, torch.tensor(1 - LOW)), torch.tensor(1 + HIGH))
                surrogate = min(ratio * advantage, clipped * advantage)
                kl = torch.exp(ref - logprob) - (ref - logprob) - 1
                terms.append(surrogate - BETA * kl + ENTROPY * entropy)
            episode_means.append(sum(terms) / len(terms))
        group_means.append(sum(episode_means) / len(episode_means))
    return -sum(group_means) / len(group_means)


def learner_loss(policy, reference, *, ranks, budget):
    """The same through plan, micro-batches and weights; the ranks' shares added up."""
    total, num_micro_batches = torch.zeros(()), 0
    for passes, batches in pieces_of(plan_of(GROUPS, ranks=ranks, budget=budget), GROUPS):
        for batch in batches:
            logprobs, entropies = token_logprobs(
                policy, batch, features_of(policy, passes), temperature=1.0, forbidden_ids=FORBIDDEN_IDS
            )
            with torch.no_grad():
                frozen = token_logprobs(
                    reference, batch, features_of(reference, passes), temperature=1.0, forbidden_ids=FORBIDDEN_IDS
                )[0]
            given = LossInputs(
                logprobs_N=logprobs,
                entropy_N=entropies,
                sampler_logprobs_N=batch.sampler_logprobs_N,
                proximal_logprobs_N=batch.sampler_logprobs_N,
                reference_logprobs_N=frozen,
                advantages_N=batch.advantages_N,
                weights_N=batch.weights_N,
            )
            output = grpo_loss(
                given,
                clip_low=LOW,
                clip_high=HIGH,
                importance_sampling_cap=2.0,
                kl_coefficient=BETA,
                entropy_coefficient=ENTROPY,
            )
            output.loss.backward()
            total, num_micro_batches = total + output.loss.detach(), num_micro_batches + 1
    return total.item(), num_micro_batches


@pytest.fixture(scope="module")
def expected():
    qwen.Qwen2_5_VLVisionAttention.forward = LIBRARY_ATTENTION
    policy, reference = small_model(seed=0), small_model(seed=1)
    loss = slow_loss(policy, reference)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in policy.named_parameters()}


@pytest.mark.parametrize(
    ("ranks", "budget", "least_micro_batches"), [(1, 10**6, 1), (1, 150, 3), (2, 10**6, 2), (3, 60, 9)]
)
def test_loss_and_gradient_equal_the_slow_ones_however_the_mini_batch_is_split(
    expected, ranks, budget, least_micro_batches
):
    policy, reference = small_model(seed=0), small_model(seed=1)
    use_fast_layers(policy)
    use_fast_layers(reference)
    loss, num_micro_batches = learner_loss(policy, reference, ranks=ranks, budget=budget)
    assert num_micro_batches >= least_micro_batches
    assert math.isfinite(loss)
    assert loss == pytest.approx(expected[0], abs=1e-5)
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[1][name], atol=1e-5, rtol=1e-3, msg=name)
