"""Group-relative advantages (GRPO; VisionThink Eq. 3: A = (reward - group mean) / group std)."""

from __future__ import annotations

import math
from collections.abc import Sequence

SPREAD_FLOOR = 1e-8
"""Rewards that differ by less than rounding count as equal: no signal, and no std to divide by."""


def has_signal(rewards: Sequence[float | None], min_scored: int) -> bool:
    """Whether a group can be trained on: at least `min_scored` verdicts, and non-zero reward variance."""
    scored = [reward for reward in rewards if reward is not None]
    return len(scored) >= min_scored and max(scored) - min(scored) > SPREAD_FLOOR


def group_advantages(rewards: Sequence[float | None]) -> tuple[float | None, ...]:
    """Advantage of each episode [G] of one prompt among the scored ones; an unscored episode stays None.

    The population std is used: the scored episodes are the whole group, not a sample of a larger one, and the squared
    advantages then average to 1 whatever their number. Equal rewards give zeros, never NaN.

    Raises:
        ValueError: a reward is NaN or infinite.
    """
    scored = [reward for reward in rewards if reward is not None]
    if not all(math.isfinite(reward) for reward in scored):
        raise ValueError(f"rewards {tuple(rewards)} cannot be compared: one is not finite")
    if not has_signal(rewards, min_scored=1):
        return tuple(None if reward is None else 0.0 for reward in rewards)
    mean = math.fsum(scored) / len(scored)
    std = math.sqrt(math.fsum((reward - mean) ** 2 for reward in scored) / len(scored))
    return tuple(None if reward is None else (reward - mean) / std for reward in rewards)
