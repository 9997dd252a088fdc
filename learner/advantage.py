"""Group-relative advantages; by default those of GRPO (VisionThink Eq. 3: A = (reward - group mean) / group std)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from configs.objectives import Advantage, Objective

SPREAD_FLOOR = 1e-8
"""Rewards that differ by less than rounding count as equal: no signal, and no std to divide by."""


def has_signal(rewards: Sequence[float | None], min_scored: int) -> bool:
    """Whether a group can be trained on: at least `min_scored` verdicts, and non-zero reward variance."""
    scored = [reward for reward in rewards if reward is not None]
    return len(scored) >= min_scored and max(scored) - min(scored) > SPREAD_FLOOR


def group_advantages(rewards: Sequence[float | None], kind: Advantage = "std") -> tuple[float | None, ...]:
    """Advantage of each episode [G] of one prompt among the S scored ones; an unscored episode stays None.

    - `std`: (r - mean) / std (GRPO). The population std is used: the scored episodes are the whole group, not a sample
      of a larger one, and the squared advantages then average to 1 whatever their number.
    - `mean`: r - mean (Dr. GRPO, arXiv 2503.20783). Groups with little variance count less.
    - `leave_one_out`: r - mean of the other rewards = S / (S - 1) (r - mean) (RLOO, arXiv 2402.14740).

    Equal rewards give zeros, never NaN.

    Raises:
        ValueError: a reward is NaN or infinite.
    """
    scored = [reward for reward in rewards if reward is not None]
    if not all(math.isfinite(reward) for reward in scored):
        raise ValueError(f"rewards {tuple(rewards)} cannot be compared: one is not finite")
    if not has_signal(rewards, min_scored=1):
        return tuple(None if reward is None else 0.0 for reward in rewards)
    mean = math.fsum(scored) / len(scored)
    match kind:
        case "std":
            scale = math.sqrt(math.fsum((reward - mean) ** 2 for reward in scored) / len(scored))
        case "mean":
            scale = 1.0
        case "leave_one_out":
            scale = (len(scored) - 1) / len(scored)
    return tuple(None if reward is None else (reward - mean) / scale for reward in rewards)


def turn_credits(
    turn_rewards: Sequence[float | None], num_turns: Sequence[int], objective: Objective
) -> tuple[tuple[float, ...], ...]:
    """What the tokens of each turn get on top of the advantage of their episode, [G][turns] (DTPO, AdaptVision, arXiv
    2512.03794; settings of its code at 142b80d).

    The reward of the first turn's action (how good was the tool call: its box, its area) is kept apart from that of the
    outcome, and compared within the group on its own: turn 1 gets A_outcome + `turn_credit` * A_turn, all later turns
    A_outcome. A_turn is taken over all scored episodes, those that called no tool included. The other half of DTPO,
    means taken apart for turns before the last and for last turns, is `aggregation=group_turns`.

    Args:
        turn_rewards: [G] None where the episode has no reward.
        num_turns: [G] turns of each episode.
    """
    weight = objective.turn_credit
    advantages = group_advantages(turn_rewards, objective.advantage)
    return tuple(
        (weight * (advantage or 0.0), *[0.0] * (count - 1))
        for advantage, count in zip(advantages, num_turns, strict=True)
    )
