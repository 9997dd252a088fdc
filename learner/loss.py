"""The multi-turn GRPO loss (VisionThink Eq. 3) on the generated tokens of a micro-batch.

Every token carries its share of the mini-batch's mean as a weight (`learner.batches.batch.weight_episodes`), so that
losses of micro-batches and ranks add up: the sum is the mini-batch's loss however it was split.

Legend: N generated tokens of a micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
"""Token metrics that add up over micro-batches and ranks; all but the first are divided by it in the end."""
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
    advantages_N: Tensor
    weights_N: Tensor
    """1 / (groups of a full mini-batch * scored episodes of the group * generated tokens of the episode)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    loss: Tensor
    """Scalar; sums over micro-batches and ranks to the mini-batch's loss."""
    sums: Tensor
    """float64, one per name in SUMS, over the tokens of weight above 0."""
    maxima: Tensor
    """float64, one per name in MAXIMA."""


def grpo_loss(
    inputs: LossInputs,
    *,
    clip_low: float,
    clip_high: float,
    importance_sampling_cap: float,
    kl_coefficient: float,
    entropy_coefficient: float,
) -> LossOutput:
    """-sum of weight * (w min(p A, clip(p, 1 - low, 1 + high) A) - beta k3 + c H), p the ratio to the proximal policy.

    w = min(cap, proximal / behaviour) corrects for tokens that an older policy sampled (the decoupled objective of
    AReaL, arXiv 2505.24298, Eq. 5, with the weight truncated); it carries no gradient. Where both are one policy, w is
    exactly 1 and this is the clipped objective of PPO.

    k3 = exp(ref - lp) - (ref - lp) - 1 estimates KL(policy || reference) without bias and is never negative
    (Schulman, "Approximating KL divergence").
    """
    raw_importance_N = (inputs.proximal_logprobs_N - inputs.sampler_logprobs_N).exp()
    importance_N = raw_importance_N.clamp(max=importance_sampling_cap)
    ratio_N = (inputs.logprobs_N - inputs.proximal_logprobs_N).exp()
    clipped_N = ratio_N.clamp(1 - clip_low, 1 + clip_high)
    surrogate_N = torch.minimum(ratio_N * inputs.advantages_N, clipped_N * inputs.advantages_N)
    objective_N = importance_N * surrogate_N + entropy_coefficient * inputs.entropy_N
    reference_kl_N = torch.zeros_like(ratio_N)
    if inputs.reference_logprobs_N is not None:
        reference_kl_N = k3(inputs.reference_logprobs_N - inputs.logprobs_N)
        objective_N = objective_N - kl_coefficient * reference_kl_N
    loss = -(inputs.weights_N * objective_N).sum()
    with torch.no_grad():
        counted_N = inputs.weights_N > 0
        log_ratio_N = inputs.logprobs_N - inputs.sampler_logprobs_N
        columns = (
            torch.ones_like(ratio_N),
            (ratio_N * inputs.advantages_N > surrogate_N).to(ratio_N.dtype),
            k3(log_ratio_N),
            log_ratio_N.abs(),
            reference_kl_N,
            inputs.entropy_N,
            importance_N,
            (raw_importance_N > importance_sampling_cap).to(ratio_N.dtype),
        )
        table_KN = torch.stack([torch.where(counted_N, column, 0.0) for column in columns]).double()
        extremes = torch.stack([torch.where(counted_N, column, 0.0) for column in (log_ratio_N.abs(), ratio_N)])
        return LossOutput(loss=loss, sums=table_KN.sum(1), maxima=extremes.double().amax(1))


def k3(log_ratio_N: Tensor) -> Tensor:
    """exp(x) - x - 1 of x = log q/p at samples of p: an estimate of KL(p || q), 0 where they agree."""
    return log_ratio_N.exp() - log_ratio_N - 1


def token_metrics(sums: Tensor, maxima: Tensor) -> dict[str, float]:
    """Means and maxima over the tokens of a mini-batch, from added sums and the largest maxima."""
    values = dict(zip(SUMS, sums.tolist(), strict=True))
    count = values.pop("num_tokens")
    means = {name: value / max(count, 1.0) for name, value in values.items()}
    return {"num_tokens": count, **means, **dict(zip(MAXIMA, maxima.tolist(), strict=True))}
