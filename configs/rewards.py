"""Settings of the reward (`reward`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from configs.require import require


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """R = R_accuracy + R_format - P_control (VisionThink, Eq. 4 and 5)."""

    accuracy_weight: float = 1.0
    """R_accuracy of a correct answer."""
    format_weight: float = 0.5
    """R_format when every turn is well formed."""
    penalty: Literal["threshold", "always", "never"] = "threshold"
    """`threshold`: Eq. 5. `always`: every tool call is penalized. `never`: no penalty (ablations of Fig. 3a)."""
    penalty_weight: float = 0.1
    """Size of P_control where it applies."""
    theta: float = 0.2
    """Direct answers are penalized where their share of the group's correct answers is below theta."""
    applies_to: Literal["correct", "all"] = "correct"
    """`correct`: only correct answers are penalized (published code). `all`: Eq. 5 taken literally."""
    overlong_tokens: int = 0
    """Generated tokens of an episode from which DAPO's soft length penalty is 1 (arXiv 2503.14476, Eq. 13); 0: none."""
    overlong_buffer: int = 0
    """Length of the ramp before `overlong_tokens` on which that penalty grows from 0 to 1."""

    def __post_init__(self) -> None:
        for name in ("accuracy_weight", "format_weight", "penalty_weight"):
            require(getattr(self, name) >= 0, f"reward.{name}", getattr(self, name), "must be at least 0")
        require(0 <= self.theta <= 1, "reward.theta", self.theta, "must be from 0 to 1")
        most, ramp = self.overlong_tokens, self.overlong_buffer
        require(most >= 0, "reward.overlong_tokens", most, "must be at least 0; 0 penalizes no length")
        require(0 <= ramp <= most, "reward.overlong_buffer", ramp, f"must be from 0 to reward.overlong_tokens={most}")
