"""Settings of the reward (`reward`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from configs.require import require


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """R = R_accuracy + R_format + R_box - P_control - P_area - P_budget. By default the last three weigh nothing, which
    leaves VisionThink, Eq. 4 and 5. AdaptVision's (arXiv 2512.03794) are penalty=calls_and_threshold, box_weight=0.1
    and area_weight=0.2."""

    accuracy_weight: float = 1.0
    """R_accuracy of a correct answer."""
    format_weight: float = 0.5
    """R_format when every turn is well formed."""
    penalty: Literal["threshold", "always", "calls_and_threshold", "never"] = "threshold"
    """When P_control applies. `threshold`: Eq. 5. `always`: to every answer after a tool call. `calls_and_threshold`:
    as `always`, and to direct answers as in Eq. 5. `never`: no penalty (with `always`, the ablations of Fig. 3a)."""
    penalty_weight: float = 0.1
    """Size of P_control where it applies."""
    theta: float = 0.2
    """Direct answers are penalized where their share of the group's correct answers is below theta."""
    applies_to: Literal["correct", "all"] = "correct"
    """Answers that penalties apply to. `correct`: only correct ones (published code). `all`: Eq. 5 taken literally."""
    box_weight: float = 0.0
    """R_box of a correct answer after a crop."""
    area_weight: float = 0.0
    """P_area of an answer after crops twice as large as the group's mean, or larger; 0 at the mean and below."""
    budget_weight: float = 0.0
    """P_budget per always-full of visual tokens above `token_budget`."""
    token_budget: float = 1.0
    """Visual tokens that an episode may use free of charge, relative to always-full."""

    def __post_init__(self) -> None:
        weights = ("accuracy_weight", "format_weight", "penalty_weight", "box_weight", "area_weight", "budget_weight")
        for name in (*weights, "token_budget"):
            require(getattr(self, name) >= 0, f"reward.{name}", getattr(self, name), "must be at least 0")
        require(0 <= self.theta <= 1, "reward.theta", self.theta, "must be from 0 to 1")
