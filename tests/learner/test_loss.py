import math
from dataclasses import replace

import pytest
import torch

from configs.objectives import GRPO
from learner.loss import MAXIMA, SUMS, LossInputs, policy_loss, token_metrics
from learner.objectives import k3

PLAIN = replace(GRPO, kl_coefficient=0.0, entropy_coefficient=0.0)


def loss_of(given, **settings):
    return policy_loss(given, replace(PLAIN, **settings))


def inputs(logprobs, old, advantages, weights, *, proximal=None, entropy=None, reference=None, episodes=None):
    """On-policy unless there is a proximal policy of its own."""

    def tensor(values):
        return None if values is None else torch.tensor(values, dtype=torch.float64)

    return LossInputs(
        logprobs_N=tensor(logprobs).requires_grad_(),
        entropy_N=tensor(entropy or [0.0] * len(logprobs)).requires_grad_(),
        sampler_logprobs_N=tensor(old),
        proximal_logprobs_N=tensor(old if proximal is None else proximal),
        reference_logprobs_N=tensor(reference),
        episode_of_N=torch.zeros(len(logprobs), dtype=torch.int64) if episodes is None else torch.tensor(episodes),
        advantages_N=tensor(advantages),
        weights_N=tensor(weights),
    )


def test_the_loss_is_the_hand_computed_one():
    # ratios 1.5 (clipped to 1.2 for A = 2), 0.5 (clipped to 0.8 for A = -1), 1.0
    given = inputs([math.log(1.5), math.log(0.5), -1.0], [0.0, 0.0, -1.0], [2.0, -1.0, 3.0], [0.5, 0.3, 0.2])
    assert loss_of(given).loss.item() == pytest.approx(-(0.5 * 2.4 + 0.3 * -0.8 + 0.2 * 3.0))


def test_clipping_is_pessimistic():
    # A high ratio on a bad token and a low one on a good token keep their gradient.
    given = inputs([math.log(1.5), math.log(0.5)], [0.0, 0.0], [-1.0, 1.0], [0.5, 0.5])
    loss = loss_of(given).loss
    assert loss.item() == pytest.approx(-(0.5 * -1.5 + 0.5 * 0.5))
    loss.backward()
    assert given.logprobs_N.grad.tolist() == pytest.approx([0.75, -0.25])


def test_low_and_high_clip_apply_each_on_their_side():
    given = inputs([math.log(2.0), math.log(0.1)], [0.0, 0.0], [1.0, -1.0], [1.0, 1.0])
    loss = loss_of(given, clip_low=0.3, clip_high=0.5).loss
    assert loss.item() == pytest.approx(-(1.5 - 0.7))


def test_at_ratio_1_the_gradient_is_that_of_reinforce():
    old, advantages, weights = [-0.3, -2.0, -5.0], [1.5, -0.5, 0.25], [0.5, 0.25, 0.25]
    given = inputs(old, old, advantages, weights)
    loss_of(given).loss.backward()
    assert given.logprobs_N.grad.tolist() == pytest.approx([-w * a for w, a in zip(weights, advantages, strict=True)])


def test_a_clipped_token_gets_no_gradient():
    given = inputs([math.log(1.5), math.log(0.5)], [0.0, 0.0], [1.0, -1.0], [0.5, 0.5])
    loss_of(given).loss.backward()
    assert given.logprobs_N.grad.tolist() == [0.0, 0.0]


def test_a_token_of_weight_0_gets_no_gradient_and_enters_no_figure():
    given = inputs([-1.0, -9.0], [-1.0, -1.0], [1.0, 5.0], [1.0, 0.0], reference=[-1.0, -4.0], entropy=[0.5, 9.0])
    output = loss_of(given, kl_coefficient=0.1, entropy_coefficient=0.1)
    output.loss.backward()
    assert given.logprobs_N.grad[1].item() == 0.0
    assert given.entropy_N.grad[1].item() == 0.0
    figures = token_metrics(output.sums, output.maxima)
    assert figures["num_tokens"] == 1
    assert figures["entropy"] == 0.5
    assert figures["mismatch_max"] == 0.0


def test_the_reference_kl_is_k3_and_its_gradient_pulls_towards_the_reference():
    given = inputs([-1.0], [-1.0], [0.0], [1.0], reference=[-1.5])
    output = loss_of(given, kl_coefficient=0.1)
    assert output.loss.item() == pytest.approx(0.1 * (math.exp(-0.5) + 0.5 - 1))
    output.loss.backward()
    # d k3 / d logprob = 1 - exp(ref - lp): the policy is too sure of the token, so descent lowers its log-probability.
    assert given.logprobs_N.grad.item() == pytest.approx(0.1 * (1 - math.exp(-0.5)))


def test_k3_is_never_negative_and_0_where_both_agree():
    values = k3(torch.linspace(-3, 3, 61, dtype=torch.float64))
    assert values.min().item() >= -1e-12
    assert values[30].item() == pytest.approx(0, abs=1e-12)


def test_entropy_is_a_bonus():
    given = inputs([-1.0, -1.0], [-1.0, -1.0], [0.0, 0.0], [0.75, 0.25], entropy=[2.0, 4.0])
    output = loss_of(given, entropy_coefficient=0.01)
    assert output.loss.item() == pytest.approx(-0.01 * (0.75 * 2 + 0.25 * 4))


def test_losses_and_figures_of_a_split_add_up_to_those_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    columns = torch.rand((6, 12), generator=generator, dtype=torch.float64).tolist()

    def part(chosen):
        lp, old, ref, entropy, advantage, weight = [[column[i] for i in chosen] for column in columns]
        given = inputs(lp, old, [a - 0.5 for a in advantage], weight, entropy=entropy, reference=ref)
        return loss_of(given, kl_coefficient=0.1, entropy_coefficient=0.01)

    whole, parts = part(range(12)), [part(range(5)), part(range(5, 12))]
    assert sum(p.loss for p in parts).item() == pytest.approx(whole.loss.item(), abs=1e-12)
    torch.testing.assert_close(parts[0].sums + parts[1].sums, whole.sums)
    torch.testing.assert_close(torch.maximum(parts[0].maxima, parts[1].maxima), whole.maxima)


def plain_loss(given, *, clip_low, clip_high, kl_coefficient, entropy_coefficient):
    """The clipped objective without importance weights, as it is for on-policy samples."""
    ratio = (given.logprobs_N - given.sampler_logprobs_N).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    objective = torch.minimum(ratio * given.advantages_N, clipped * given.advantages_N)
    objective = objective + entropy_coefficient * given.entropy_N
    objective = objective - kl_coefficient * k3(given.reference_logprobs_N - given.logprobs_N)
    return -(given.weights_N * objective).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_policy_the_loss_and_its_gradient_are_bit_for_bit_those_without_importance_weights(dtype):
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn((6, 500), generator=generator, dtype=dtype)
    found = []
    for loss in (lambda given, **of: loss_of(given, **of).loss, plain_loss):
        logprobs, entropy = (drawn[i].abs().neg().clone().requires_grad_() for i in range(2))
        given = LossInputs(
            logprobs_N=logprobs,
            entropy_N=entropy,
            sampler_logprobs_N=drawn[2].abs().neg(),
            proximal_logprobs_N=drawn[2].abs().neg(),
            reference_logprobs_N=drawn[3].abs().neg(),
            episode_of_N=torch.arange(500) // 9,
            advantages_N=drawn[4],
            weights_N=drawn[5].abs(),
        )
        value = loss(given, clip_low=0.2, clip_high=0.3, kl_coefficient=0.1, entropy_coefficient=0.01)
        value.backward()
        found.append((value.detach(), logprobs.grad, entropy.grad))
    assert all(torch.equal(ours, plain) for ours, plain in zip(*found, strict=True))


def test_off_policy_tokens_count_by_the_ratio_of_proximal_and_behaviour_policy():
    """The decoupled objective written out: weight p_prox/p_behave, clipping of p/p_prox."""
    behave, proximal, current = [0.5, 0.4, 0.2], [0.6, 0.2, 0.2], [0.9, 0.15, 0.21]
    advantages, weights = [1.0, -2.0, 3.0], [0.5, 0.3, 0.2]
    logs = [[math.log(p) for p in each] for each in (current, behave, proximal)]
    given = inputs(logs[0], logs[1], advantages, weights, proximal=logs[2])
    loss = loss_of(given).loss
    terms = (
        0.6 / 0.5 * 1.2 * 1.0,  # p/p_prox = 1.5, clipped
        0.2 / 0.4 * 0.8 * -2.0,  # 0.75, clipped: min of -1.5 and -1.6
        1.0 * 1.05 * 3.0,
    )
    assert loss.item() == pytest.approx(-sum(w * term for w, term in zip(weights, terms, strict=True)))
    loss.backward()
    # d(p/p_prox)/dlogp = p/p_prox where it is not clipped; the importance weight is a constant.
    assert given.logprobs_N.grad.tolist() == pytest.approx([0.0, 0.0, -0.2 * 1.05 * 3.0])


def test_before_the_first_step_of_an_update_an_older_sample_gets_the_truncated_policy_gradient():
    behave, now, advantages, weights = [-1.0, -0.7, -2.0], [-0.9, -1.5, -0.2], [1.0, -2.0, 0.5], [0.5, 0.3, 0.2]
    given = inputs(now, behave, advantages, weights, proximal=now)
    loss_of(given).loss.backward()
    importance = [min(2.0, math.exp(lp - old)) for lp, old in zip(now, behave, strict=True)]
    expected = [-w * i * a for w, i, a in zip(weights, importance, advantages, strict=True)]
    assert importance[2] == 2.0
    assert given.logprobs_N.grad.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("gap", [5.0, 50.0, 80.0])
def test_extreme_importance_weights_are_capped_and_counted(gap):
    """Also where the ratio itself is beyond any number."""
    given = inputs([-1.0, -1.0, -1.0 - gap], [-1.0 - 20 * gap, -1.0, -1.0], [1.0] * 3, [0.5, 0.3, 0.2], proximal=[
        -1.0, -1.0, -1.0 - gap
    ])  # fmt: skip
    output = loss_of(given, importance_sampling_cap=4.0)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(-(0.5 * 4.0 + 0.3 * 1.0 + 0.2 * math.exp(-gap)))
    assert given.logprobs_N.grad.tolist() == pytest.approx([-2.0, -0.3, -0.2 * math.exp(-gap)])
    figures = token_metrics(output.sums, output.maxima)
    assert figures["importance_weight"] == pytest.approx((4.0 + 1.0 + math.exp(-gap)) / 3)
    assert figures["importance_capped"] == pytest.approx(1 / 3)


def test_on_policy_every_importance_weight_is_1():
    given = inputs([-1.0, -2.0], [-1.5, -0.2], [1.0, 1.0], [0.5, 0.5])
    output = loss_of(given, importance_sampling_cap=1.0)
    figures = token_metrics(output.sums, output.maxima)
    assert (figures["importance_weight"], figures["importance_capped"]) == (1.0, 0.0)


def test_figures_are_means_and_maxima_over_tokens():
    given = inputs([math.log(1.5), -1.0], [0.0, -1.0], [1.0, 1.0], [0.9, 0.1], entropy=[1.0, 3.0])
    output = loss_of(given)
    figures = token_metrics(output.sums, output.maxima)
    assert set(figures) == {*SUMS, *MAXIMA}
    assert figures["clipped"] == 0.5
    assert figures["mismatch"] == pytest.approx(math.log(1.5) / 2)
    assert figures["mismatch_max"] == pytest.approx(math.log(1.5))
    assert figures["ratio_max"] == pytest.approx(1.5)
    assert figures["policy_kl"] == pytest.approx((1.5 - math.log(1.5) - 1) / 2)
    assert figures["entropy"] == 2.0


def test_the_default_is_what_it_was_before_there_were_objectives_by_name():
    """Recorded from `grpo_loss` and `weight_episodes` at 96d8b7f."""

    def column(a, b):
        return [-(0.05 + abs(math.sin(a * i + b))) * 2 for i in range(24)]

    advantages, weights = [math.cos(2.1 * i) for i in range(24)], [(1 + i % 5) / 90 for i in range(24)]
    given = inputs(
        column(1.3, 0.2), column(1.31, 0.25), advantages, weights,
        proximal=column(1.29, 0.22), entropy=[-each for each in column(0.7, 0.9)], reference=column(1.4, 0.1),
    )  # fmt: skip
    output = policy_loss(
        given,
        replace(GRPO, clip_high=0.3, importance_sampling_cap=1.1, kl_coefficient=0.05, entropy_coefficient=0.01),
    )
    output.loss.backward()
    assert output.loss.item() == pytest.approx(0.012770319195557649, rel=1e-12)
    gradient = given.logprobs_N.grad.tolist()
    assert gradient[:3] == pytest.approx([-0.012370063023159664, 0.011273835708432604, 0.013948791229623994], rel=1e-12)
    assert gradient[-2:] == pytest.approx([-2.8400278784013275e-05, 0.012731575200316297], rel=1e-9)
    assert output.sums[[0, 1, 7]].tolist() == [24.0, 2.0, 9.0]
    assert output.sums[6].item() == pytest.approx(21.90819710736038, rel=1e-12)
