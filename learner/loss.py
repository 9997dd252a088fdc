"""The loss of an objective on the generated tokens of a micro-batch; by default multi-turn GRPO (VisionThink Eq. 3).

Every token carries its share of the mini-batch's mean as a weight (`learner.batches.batch.weight_episodes`), so that
losses of micro-batches and ranks add up: the sum is the mini-batch's loss however it was split. Ratios of episodes add
up too, because all tokens of an episode are in one micro-batch.

Legend: N generated tokens of a micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from configs.objectives import Objective
from learner.objectives import clipped_ratio, episode_mean, importance_weights, k3, reference_kl, weighted_logprob

SUMS = (
    "num_tokens",
    "clipped",
    "policy_kl",
    "mismatch",
    "reference_kl",
    "entropy",
    "importance_weight",
    "importance_capped",
)
"""Token metrics that add up over micro-batches and ranks; all but the first are divided by it in the end. `policy_kl`
and `reference_kl` are k3 whatever the loss uses; `importance_capped` counts masked tokens as well."""
MAXIMA = ("mismatch_max", "ratio_max")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """One value per generated token, [N] each."""

    logprobs_N: Tensor
    """Under the policy being trained; carries the gradient."""
    entropy_N: Tensor
    """Of the distribution each token was drawn from; carries the gradient."""
    sampler_logprobs_N: Tensor
    """Under the policy that sampled each token, the behaviour policy; of several versions in one episode, its own."""
    proximal_logprobs_N: Tensor
    """Under the proximal policy, which clipping keeps the policy close to; on-policy this is the one that sampled."""
    reference_logprobs_N: Tensor | None
    """Under the frozen reference; None when the KL coefficient is 0."""
    episode_of_N: Tensor
    """int64, below N: which tokens are of one episode."""
    advantages_N: Tensor
    weights_N: Tensor
    """Share of each token in the mean over a full mini-batch (`learner.batches.batch.weight_episodes`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    loss: Tensor
    """Scalar; sums over micro-batches and ranks to the mini-batch's loss."""
    sums: Tensor
    """float64, one per name in SUMS, over the tokens of weight above 0."""
    maxima: Tensor
    """float64, one per name in MAXIMA."""


def policy_loss(inputs: LossInputs, objective: Objective) -> LossOutput:
    """-sum of weight * (w S - beta KL + c H), S the surrogate of the ratio p to the proximal policy.

    With `clip`, S = min(p A, clip(p, 1 - low, 1 + high) A). w = proximal / behaviour, capped or masked, corrects for
    tokens that an older policy or another engine sampled (the decoupled objective of AReaL, arXiv 2505.24298, Eq. 5);
    it carries no gradient. Where both are one policy, w is exactly 1 and this is the clipped objective of PPO.
    """
    log_importance_N = inputs.proximal_logprobs_N - inputs.sampler_logprobs_N
    importance_N, is_corrected_N = importance_weights(log_importance_N, inputs.episode_of_N, objective)
    log_ratio_N = inputs.logprobs_N - inputs.proximal_logprobs_N
    if objective.surrogate == "clip_episode":
        log_ratio_N = episode_mean(log_ratio_N, inputs.episode_of_N)
    ratio_N = log_ratio_N.exp()
    if objective.surrogate == "weighted_logprob":
        surrogate_N, is_clipped_N = weighted_logprob(inputs.logprobs_N, ratio_N, inputs.advantages_N, objective)
    else:
        surrogate_N, is_clipped_N = clipped_ratio(ratio_N, inputs.advantages_N, objective)
    objective_N = importance_N * surrogate_N + objective.entropy_coefficient * inputs.entropy_N
    reference_k3_N = torch.zeros_like(ratio_N)
    if inputs.reference_logprobs_N is not None:
        to_reference_N = inputs.reference_logprobs_N - inputs.logprobs_N
        objective_N = objective_N - objective.kl_coefficient * reference_kl(to_reference_N, objective)
        reference_k3_N = k3(to_reference_N.detach())
    loss = -(inputs.weights_N * objective_N).sum()
    with torch.no_grad():
        counted_N = inputs.weights_N > 0
        to_sampler_N = inputs.logprobs_N - inputs.sampler_logprobs_N
        columns = (
            torch.ones_like(ratio_N),
            is_clipped_N.to(ratio_N.dtype),
            k3(to_sampler_N),
            to_sampler_N.abs(),
            reference_k3_N,
            inputs.entropy_N,
            importance_N,
            is_corrected_N.to(ratio_N.dtype),
        )
        table_KN = torch.stack([torch.where(counted_N, column, 0.0) for column in columns]).double()
        extremes = torch.stack([torch.where(counted_N, column, 0.0) for column in (to_sampler_N.abs(), ratio_N)])
        return LossOutput(loss=loss, sums=table_KN.sum(1), maxima=extremes.double().amax(1))


def token_metrics(sums: Tensor, maxima: Tensor) -> dict[str, float]:
    """Means and maxima over the tokens of a mini-batch, from added sums and the largest maxima."""
    values = dict(zip(SUMS, sums.tolist(), strict=True))
    count = values.pop("num_tokens")
    means = {name: value / max(count, 1.0) for name, value in values.items()}
    return {"num_tokens": count, **means, **dict(zip(MAXIMA, maxima.tolist(), strict=True))}
