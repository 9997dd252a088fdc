"""The parts of an objective on generated tokens: surrogates, importance corrections, estimates of the KL. Pure.

`learner.loss` puts them together as `configs.objectives.Objective` says.

Legend: N generated tokens of a micro-batch. All tokens of an episode are in one micro-batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from configs.objectives import Objective


def episode_mean(values_N: Tensor, episode_of_N: Tensor) -> Tensor:
    """[N] each token has the mean over the tokens of its episode, those of all its turns."""
    sums_E = torch.zeros_like(values_N).index_add(0, episode_of_N, values_N)
    counts_E = torch.zeros_like(values_N).index_add(0, episode_of_N, torch.ones_like(values_N))
    return (sums_E / counts_E.clamp(min=1))[episode_of_N]


def clipped_ratio(ratio_N: Tensor, advantages_N: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """min(p A, clip(p) A) (PPO, arXiv 1707.06347, Eq. 7), and [N] where the clipping removes the gradient.

    With a `clip_low` and a `clip_high` of their own: clip-higher (DAPO, arXiv 2503.14476, Eq. 8). With the ratio of an
    episode at each of its tokens: GSPO (arXiv 2507.18071, Eq. 5), whose p is the geometric mean of the token ratios.
    """
    clipped_N = ratio_N.clamp(1 - objective.clip_low, 1 + objective.clip_high)
    surrogate_N = torch.minimum(ratio_N * advantages_N, clipped_N * advantages_N)
    return surrogate_N, ratio_N * advantages_N > surrogate_N


def weighted_logprob(
    logprobs_N: Tensor, ratio_N: Tensor, advantages_N: Tensor, objective: Objective
) -> tuple[Tensor, Tensor]:
    """sg(clip(p)) A log pi (CISPO, arXiv 2506.13585, Eq. 4 and 5), and [N] where p is clipped; sg carries no gradient.

    Every token keeps a gradient, with a bounded weight. At p = 1 this is REINFORCE.
    """
    clipped_N = ratio_N.detach().clamp(1 - objective.clip_low, 1 + objective.clip_high)
    return clipped_N * advantages_N * logprobs_N, clipped_N != ratio_N.detach()


def importance_weights(log_importance_N: Tensor, episode_of_N: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """[N] weights of tokens for what sampled them, and [N] where a weight was capped or masked; without a gradient.

    From u = log(proximal / behaviour) of each token, or of each episode where the surrogate has one ratio for it:

    - `truncate`: min(cap, e^u).
    - `mask_tokens`: e^u within the band, else 0 (IcePop).
    - `mask_episodes`: min(cap, e^u) where the geometric mean of e^u over the episode is within the band, else 0.

    What is masked still counts where tokens are averaged, so that losses of micro-batches add up.
    """
    if objective.surrogate == "clip_episode":
        log_importance_N = episode_mean(log_importance_N, episode_of_N)
    raw_N = log_importance_N.exp()
    capped_N = raw_N.clamp(max=objective.importance_sampling_cap)
    low, high = objective.importance_band
    match objective.importance_correction:
        case "truncate":
            return capped_N, raw_N > objective.importance_sampling_cap
        case "mask_tokens":
            is_kept_N = (raw_N >= low) & (raw_N <= high)
            return torch.where(is_kept_N, raw_N, 0.0), ~is_kept_N
        case "mask_episodes":
            mean_N = episode_mean(log_importance_N, episode_of_N).exp()
            is_kept_N = (mean_N >= low) & (mean_N <= high)
            changed_N = ~is_kept_N | (raw_N > objective.importance_sampling_cap)
            return torch.where(is_kept_N, capped_N, 0.0), changed_N


def reference_kl(log_ratio_N: Tensor, objective: Objective) -> Tensor:
    """The chosen estimate of KL(policy || reference) at samples of the policy, from x = log(reference / policy).

    Estimates by Schulman, "Approximating KL divergence". What descent follows is their gradient in theta:

    - `k1` = -x, unbiased, high variance. Its own gradient, grad log pi, is 0 on average whatever the reference. So it
      is differentiated as part of the token's reward: -x grad log pi, which is that of the KL of the token.
    - `k2` = x^2 / 2, biased, low variance. Its gradient is -x grad log pi as well.
    - `k3` = e^x - x - 1, unbiased, never negative. Its gradient is (1 - e^x) grad log pi: on average that of the
      reverse, KL(reference || policy), and near x = 0 about the same.
    """
    match objective.kl_estimator:
        case "k1":
            fixed_N = log_ratio_N.detach()
            return -fixed_N * (1 + fixed_N - log_ratio_N)
        case "k2":
            return log_ratio_N.square() / 2
        case "k3":
            return k3(log_ratio_N)


def k3(log_ratio_N: Tensor) -> Tensor:
    """exp(x) - x - 1 of x = log q/p at samples of p: an estimate of KL(p || q), 0 where they agree."""
    return log_ratio_N.exp() - log_ratio_N - 1
