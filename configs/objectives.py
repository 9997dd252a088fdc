"""Objectives by name. Each is a row of independent choices, which can be set alone as well (`learner.advantage=mean`).

The mathematics are in `learner.advantage`, `learner.batches.batch.weight_episodes`, `learner.objectives` and
`learner.loss`; docs/objectives.md has the formulas side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Name = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "dtpo"]
Advantage = Literal["std", "mean", "leave_one_out"]
Aggregation = Literal["episode_mean", "group_tokens", "batch_tokens", "group_turns", "fixed_length", "episode_sum"]
Surrogate = Literal["clip", "clip_episode", "weighted_logprob"]
KLEstimator = Literal["k1", "k2", "k3"]
Correction = Literal["truncate", "mask_tokens", "mask_episodes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What an update maximizes. The settings of the same names in `LearnerConfig` describe each choice."""

    advantage: Advantage = "std"
    aggregation: Aggregation = "episode_mean"
    surrogate: Surrogate = "clip"
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_estimator: KLEstimator = "k3"
    kl_coefficient: float = 0.001
    turn_credit: float = 0.0
    entropy_coefficient: float = 0.001
    length_normalizer: int = 96
    importance_correction: Correction = "truncate"
    importance_sampling_cap: float = 2.0
    importance_band: tuple[float, float] = (0.5, 5.0)


OBJECTIVES: Mapping[Name, Objective] = MappingProxyType(
    {
        # VisionThink (arXiv 2507.13348), Eq. 3.
        "grpo": Objective(),
        # arXiv 2503.20783: neither the std nor the length of an episode; no KL.
        "dr_grpo": Objective(advantage="mean", aggregation="fixed_length", kl_coefficient=0.0),
        # arXiv 2503.14476, Eq. 8: clip-higher and the mean over the tokens of a group; no KL.
        "dapo": Objective(aggregation="group_tokens", clip_high=0.28, kl_coefficient=0.0),
        # arXiv 2507.18071, Eq. 5 to 7, and the clip range of its section 5.1. It leaves the KL open.
        "gspo": Objective(surrogate="clip_episode", clip_low=3e-4, clip_high=4e-4),
        # MiniMax-M1 (arXiv 2506.13585), Eq. 4 and 5: no lower bound, no KL. It gives no upper bound; 5 is ours.
        "cispo": Objective(
            aggregation="group_tokens", surrogate="weighted_logprob", clip_low=1.0, clip_high=4.0, kl_coefficient=0.0
        ),
        # arXiv 2402.14740: REINFORCE on whole episodes, the KL in the reward. The bound of the ratio is ours.
        "rloo": Objective(
            advantage="leave_one_out",
            aggregation="episode_sum",
            surrogate="weighted_logprob",
            clip_low=1.0,
            clip_high=4.0,
            kl_estimator="k1",
        ),
        # AdaptVision (arXiv 2512.03794) and the settings of its code at 142b80d: no KL.
        "dtpo": Objective(aggregation="group_turns", clip_high=0.24, kl_coefficient=0.0, turn_credit=0.3),
    }
)
GRPO = OBJECTIVES["grpo"]
