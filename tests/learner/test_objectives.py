"""Every objective by hand: from rewards and probability ratios to the loss, on one group of three episodes.

rewards 1.5, 0, 0; tokens by turn (2), (1, 2), (4); ratios of the tokens as in RATIOS; all log-probabilities -1.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from actors.episode import Episode, EpisodeId, PlayedGroup, SampleRef, Status, Turn, VersionSpan
from configs.objectives import GRPO, OBJECTIVES
from learner.advantage import group_advantages, turn_credits
from learner.batches.batch import TrainingGroup, weight_episodes
from learner.loss import LossInputs, policy_loss, token_metrics
from learner.objectives import reference_kl
from tests.learner.builders import make_group, pieces_of, plan_of, rows_of

TURNS = ((2,), (1, 2), (4,))
RATIOS = (1.5, 1.0, 0.5, 1.0, 1.9, 1.0, 1.0, 1.0, 1.0)
REWARDS = (1.5, 0.0, 0.0)
ROOT = math.sqrt(2)
"""The rewards have mean 0.5 and std 1/sqrt(2): advantages sqrt(2), -sqrt(2)/2, -sqrt(2)/2."""


def episode(index, lengths):
    prompt, turns = (1,), []
    for length in lengths:
        said = (2,) * length
        turns.append(
            Turn(
                prompt_ids=prompt,
                completion_ids=said,
                logprobs=(-1.0,) * length,
                version_spans=(VersionSpan(version=0, num_tokens=length),),
                finish_reason="stop",
                text="",
                view="quarter",
                num_visual_tokens=0,
            )
        )
        prompt = (*prompt, *said, 1)
    return Episode(
        id=EpisodeId(run="r", step=0, sample="s", index=index, attempt=0),
        turns=tuple(turns),
        status=Status.ANSWERED,
        answer="a",
        is_well_formed=True,
    )


def group_of(objective, *, turn_rewards=(0.0, 0.0, 0.0)):
    episodes = tuple(episode(index, lengths) for index, lengths in enumerate(TURNS))
    return TrainingGroup(
        played=PlayedGroup(
            ref=SampleRef(dataset="d", row=0, uid="0:0"),
            question="q",
            answer="a",
            needs_full=None,
            episodes=episodes,
            full_size=(56, 56),
            num_full_tokens=4,
            image_sha256="",
        ),
        rewards=REWARDS,
        advantages=group_advantages(REWARDS, objective.advantage),
        turn_credits=turn_credits(turn_rewards, [len(lengths) for lengths in TURNS], objective),
        image=None,
    )


def inputs_of(rows, *, logprobs=None, proximal=None, reference=None):
    """The log-probabilities are by default -1, and those of the proximal policy such that the ratios are RATIOS."""
    counts = [len(row.generated_at) for row in rows]
    current = torch.full((sum(counts),), -1.0, dtype=torch.float64) if logprobs is None else logprobs
    if proximal is None:
        proximal = current - torch.tensor(RATIOS, dtype=torch.float64).log()
    return LossInputs(
        logprobs_N=current.clone().requires_grad_(),
        entropy_N=torch.zeros_like(current),
        sampler_logprobs_N=proximal,
        proximal_logprobs_N=proximal,
        reference_logprobs_N=reference,
        episode_of_N=torch.arange(len(rows)).repeat_interleave(torch.tensor(counts)),
        advantages_N=torch.from_numpy(np.concatenate([row.advantages for row in rows])),
        weights_N=torch.from_numpy(np.concatenate([row.token_weights for row in rows])),
    )


def objective_and_gradient(objective, **given):
    rows = weight_episodes([(0, group_of(objective, **given))], 1, objective)
    inputs = inputs_of(rows)
    output = policy_loss(inputs, objective)
    output.loss.backward()
    return -output.loss.item(), -inputs.logprobs_N.grad


def named(name, **settings):
    return replace(OBJECTIVES[name], kl_coefficient=0.0, **settings)


def test_grpo():
    value, _ = objective_and_gradient(named("grpo"))
    episodes = [ROOT * (1.2 + 1) / 2, -ROOT / 2 * (0.8 + 1 + 1.9) / 3, -ROOT / 2]
    assert value == pytest.approx(sum(episodes) / 3)


def test_dr_grpo_has_neither_std_nor_lengths():
    value, gradient = objective_and_gradient(named("dr_grpo", length_normalizer=10))
    tokens = 1.0 * (1.2 + 1) - 0.5 * (0.8 + 1 + 1.9) - 0.5 * 4
    assert value == pytest.approx(tokens / (3 * 10))
    assert gradient[-4:].tolist() == pytest.approx([-0.5 / 30] * 4), "whatever the length of the episode"


def test_dapo_clips_higher_and_averages_over_the_tokens_of_the_group():
    value, _ = objective_and_gradient(named("dapo"))
    assert value == pytest.approx((ROOT * (1.28 + 1) - ROOT / 2 * (0.8 + 1 + 1.9) - ROOT / 2 * 4) / 9)


def test_gspo_clips_the_geometric_mean_over_all_turns_of_an_episode():
    value, gradient = objective_and_gradient(named("gspo"))
    # sqrt(1.5) is above 1 + 4e-4, the cube root of 0.95 below 1 - 3e-4.
    assert value == pytest.approx((ROOT * 1.0004 - ROOT / 2 * 0.9997 - ROOT / 2) / 3)
    assert gradient[:5].tolist() == [0.0] * 5
    wide = named("gspo", clip_low=0.5, clip_high=0.5)
    value, gradient = objective_and_gradient(wide)
    assert value == pytest.approx((ROOT * math.sqrt(1.5) - ROOT / 2 * 0.95 ** (1 / 3) - ROOT / 2) / 3)
    # d s / d logprob = s / n for each token of the episode.
    first, second = ROOT * math.sqrt(1.5) / 2 / 3, -ROOT / 2 * 0.95 ** (1 / 3) / 3 / 3
    assert gradient.tolist() == pytest.approx([*[first] * 2, *[second] * 3, *[-ROOT / 2 / 4 / 3] * 4])


def test_cispo_bounds_the_weight_and_keeps_the_gradient_of_every_token():
    value, gradient = objective_and_gradient(named("cispo", clip_high=0.6))
    weighted = [ROOT * 1.5, ROOT, *[-ROOT / 2 * ratio for ratio in (0.5, 1.0, 1.6, 1.0, 1.0, 1.0, 1.0)]]
    assert gradient.tolist() == pytest.approx([each / 9 for each in weighted])
    assert value == pytest.approx(sum(each / 9 * -1.0 for each in weighted)), "all log-probabilities are -1"


def test_rloo_is_reinforce_on_whole_episodes_against_the_mean_of_the_others():
    objective = named("rloo")
    rows = weight_episodes([(0, group_of(objective))], 1, objective)
    current = torch.full((9,), -1.0, dtype=torch.float64)
    inputs = inputs_of(rows, proximal=current)
    output = policy_loss(inputs, objective)
    output.loss.backward()
    # 1.5 - 0 = 1.5; 0 - (1.5 + 0) / 2 = -0.75, twice.
    assert (-inputs.logprobs_N.grad).tolist() == pytest.approx([*[1.5 / 3] * 2, *[-0.75 / 3] * 7])
    assert -output.loss.item() == pytest.approx((1.5 * -2 - 0.75 * -3 - 0.75 * -4) / 3)


def test_dtpo_credits_the_tool_call_in_its_own_turn_and_averages_turns_apart():
    # Only the second episode called the tool, and well: its reward 0.2 has advantage sqrt(2), the others -sqrt(2)/2.
    objective = named("dtpo")
    value, _ = objective_and_gradient(objective, turn_rewards=(0.0, 0.2, 0.0))
    direct, asked = ROOT - 0.3 * ROOT / 2, -ROOT / 2 + 0.3 * ROOT
    silent = -ROOT / 2 - 0.3 * ROOT / 2
    last = direct * (1.24 + 1) - ROOT / 2 * (1 + 1.9) + silent * 4
    earlier = min(asked * 0.5, asked * 0.8)
    assert value == pytest.approx(last / 8 + 0.5 * earlier / 1)


def test_without_a_reward_of_its_own_a_turn_gets_the_advantage_of_its_episode():
    rows = weight_episodes([(0, group_of(OBJECTIVES["dtpo"]))], 1)
    assert [sorted(set(row.advantages.tolist())) for row in rows] == [[a] for a in group_advantages(REWARDS)]


def test_credits_reach_the_tokens_of_their_turn_alone():
    group = make_group(3, ask_share=1.0)
    credits = tuple((float(index + 1), -1.0) for index in range(4))
    ((_, (batch,)),) = pieces_of(plan_of([replace(group, turn_credits=credits)]), [group])
    expected = {}
    for each, advantage, credit in zip(group.played.episodes, group.advantages, credits, strict=True):
        of_turns = zip(each.turns, credit, strict=True)
        said = [(turn.logprobs, advantage + extra) for turn, extra in of_turns]
        expected |= {np.float32(logprob): np.float32(a) for logprobs, a in said for logprob in logprobs}
    found = zip(batch.sampler_logprobs_N.numpy(), batch.advantages_N.numpy(), strict=True)
    assert all(expected[logprob] == advantage for logprob, advantage in found)


def test_batch_tokens_is_the_mean_over_the_tokens_of_the_mini_batch():
    objective = replace(GRPO, aggregation="batch_tokens")
    groups = [make_group(1, lost=(0, 2)), make_group(2)]
    rows = weight_episodes(list(enumerate(groups)), 2, objective)
    number = sum(len(row.generated_at) for row in rows)
    assert {weight for row in rows for weight in row.token_weights} == {1 / number}
    half = weight_episodes([(0, groups[1])], 2, objective)
    assert sum(row.token_weights.sum() for row in half) == pytest.approx(0.5), "half of the groups, half of the weight"


SUMS_TO_1 = [name for name in OBJECTIVES if name not in ("dr_grpo", "rloo", "dtpo")]


@pytest.mark.parametrize("name", SUMS_TO_1)
def test_weights_of_means_sum_to_1(name):
    groups = [make_group(1, lost=(0, 2)), make_group(2)]
    rows = weight_episodes(list(enumerate(groups)), 2, OBJECTIVES[name])
    assert sum(row.token_weights.sum() for row in rows) == pytest.approx(1.0)


GROUPS = [make_group(1), make_group(2, lost=(1,)), make_group(3, ask_share=1.0, group_size=3)]
CHOICES = {
    **OBJECTIVES,
    "batch_tokens": replace(GRPO, aggregation="batch_tokens"),
    "mask_tokens": replace(GRPO, importance_correction="mask_tokens", importance_band=(0.9, 1.1)),
    "mask_episodes": replace(OBJECTIVES["gspo"], importance_correction="mask_episodes", importance_band=(0.95, 1.02)),
}


def loss_through_plan(objective, **split):
    """The loss summed over micro-batches and ranks, of log-probabilities that depend on the token alone."""
    total, sums = 0.0, 0.0
    for _, batches in pieces_of(plan_of(GROUPS, objective=objective, **split), GROUPS):
        for batch in batches:
            sampler_N = batch.sampler_logprobs_N.double()
            inputs = LossInputs(
                logprobs_N=sampler_N + 0.3 * torch.sin(97 * sampler_N),
                entropy_N=sampler_N.square(),
                sampler_logprobs_N=sampler_N,
                proximal_logprobs_N=sampler_N + 0.2 * torch.cos(89 * sampler_N),
                reference_logprobs_N=sampler_N + 0.3 * torch.sin(83 * sampler_N),
                episode_of_N=batch.episode_of_N,
                advantages_N=batch.advantages_N.double(),
                weights_N=batch.weights_N.double(),
            )
            output = policy_loss(inputs, objective)
            total, sums = total + output.loss.item(), sums + output.sums
    return total, sums


@pytest.mark.parametrize("name", CHOICES)
def test_losses_add_up_however_the_mini_batch_is_split(name):
    whole, figures = loss_through_plan(CHOICES[name])
    assert math.isfinite(whole)
    for split in ({"budget": 60}, {"ranks": 2}, {"ranks": 3, "budget": 100}):
        loss, same = loss_through_plan(CHOICES[name], **split)
        assert loss == pytest.approx(whole, rel=1e-6)
        torch.testing.assert_close(same, figures)


@pytest.mark.parametrize("name", [name for name in CHOICES if name != "batch_tokens"])
def test_weights_do_not_depend_on_the_parts_in_which_groups_come(name):
    def weights(plans):
        return [row.token_weights.tolist() for row in rows_of(plans)]

    whole = weights(plan_of(GROUPS, prompts=4, objective=CHOICES[name]))
    first = weights(plan_of(GROUPS[:2], prompts=4, objective=CHOICES[name]))
    rest = weights(plan_of(GROUPS[2:], prompts=4, num_before=2, objective=CHOICES[name]))
    assert sorted(whole) == sorted(first + rest)


def test_tokens_of_a_mini_batch_in_parts_cannot_be_counted():
    with pytest.raises(AssertionError, match="counted over the whole"):
        plan_of(GROUPS[2:], prompts=4, num_before=2, objective=CHOICES["batch_tokens"])


@pytest.mark.parametrize(
    ("estimator", "value", "gradient"),
    [
        ("k1", 0.5, 0.5),  # -x, and -x grad log pi
        ("k2", 0.125, 0.5),  # x^2 / 2
        ("k3", math.exp(-0.5) + 0.5 - 1, 1 - math.exp(-0.5)),  # e^x - x - 1, and (1 - e^x) grad log pi
    ],
)
def test_estimates_of_the_kl_and_what_descent_follows(estimator, value, gradient):
    logprob = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    found = reference_kl(-1.5 - logprob, replace(GRPO, kl_estimator=estimator))
    found.backward()
    assert (found.item(), logprob.grad.item()) == pytest.approx((value, gradient))


def test_on_average_k1_and_k2_follow_the_kl_and_k3_its_reverse():
    """Over all three tokens, weighted by their probability: exact expectations."""
    logits = torch.tensor([0.3, -0.4, 1.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.1, 0.5, -0.2], dtype=torch.float64).log_softmax(0)

    def gradient(of):
        return torch.autograd.grad(of(logits.log_softmax(0)), logits)[0]

    def estimated(estimator):
        def of(logprobs):
            estimate = reference_kl(reference - logprobs, replace(GRPO, kl_estimator=estimator))
            return (logprobs.detach().exp() * estimate).sum()

        return gradient(of)

    forward = gradient(lambda logprobs: (logprobs.exp() * (logprobs - reference)).sum())
    reverse = gradient(lambda logprobs: (reference.exp() * (reference - logprobs)).sum())
    torch.testing.assert_close(estimated("k1"), forward)
    torch.testing.assert_close(estimated("k2"), forward)
    torch.testing.assert_close(estimated("k3"), reverse)
    assert not torch.allclose(forward, reverse, rtol=1e-2)


IMPORTANCE = (4.0, 1.0, 0.25, 1.0, 1.0, 3.0, 3.0, 3.0, 3.0)
"""proximal / behaviour of each token; geometric means 2, 0.63 and 3."""


@pytest.mark.parametrize(
    ("correction", "expected"),
    [
        ("truncate", (2.0, 1.0, 0.25, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0)),
        ("mask_tokens", (0.0, 1.0, 0.0, 1.0, 1.0, 3.0, 3.0, 3.0, 3.0)),
        ("mask_episodes", (2.0, 1.0, 0.25, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0)),
    ],
)
def test_importance_weights_are_capped_or_masked(correction, expected):
    objective = replace(GRPO, kl_coefficient=0.0, importance_correction=correction, importance_band=(0.5, 3.5))
    gradient, figures = importance_gradient(objective)
    plain = [ROOT / 6, ROOT / 6, *[-ROOT / 18] * 3, *[-ROOT / 24] * 4]
    assert gradient.tolist() == pytest.approx([w * g for w, g in zip(expected, plain, strict=True)])
    assert figures["importance_capped"] == pytest.approx({"mask_tokens": 2}.get(correction, 5) / 9)


def test_episodes_outside_the_band_are_masked_as_a_whole():
    band = replace(GRPO, kl_coefficient=0.0, importance_correction="mask_episodes", importance_band=(0.7, 2.5))
    gradient, _ = importance_gradient(band)
    assert gradient.tolist() == pytest.approx([2 * ROOT / 6, ROOT / 6, *[0.0] * 7])


def test_with_a_ratio_per_episode_the_importance_weight_is_one_per_episode():
    objective = named("gspo", importance_sampling_cap=2.5)
    gradient, _ = importance_gradient(objective)
    weights = [*[2.0] * 2, *[0.25 ** (1 / 3)] * 3, *[2.5] * 4]
    plain = [ROOT / 6, ROOT / 6, *[-ROOT / 18] * 3, *[-ROOT / 24] * 4]
    assert gradient.tolist() == pytest.approx([w * g for w, g in zip(weights, plain, strict=True)])


def importance_gradient(objective):
    rows = weight_episodes([(0, group_of(objective))], 1, objective)
    current = torch.full((9,), -1.0, dtype=torch.float64)
    behaviour = current - torch.tensor(IMPORTANCE, dtype=torch.float64).log()
    inputs = replace(inputs_of(rows, proximal=current), sampler_logprobs_N=behaviour)
    output = policy_loss(inputs, objective)
    output.loss.backward()
    return -inputs.logprobs_N.grad, token_metrics(output.sums, output.maxima)
