"""Rewards of a group: R = R_accuracy + R_format - P_control (VisionThink, Eq. 4 and 5).

A pure function of the whole group, since the penalty depends on how the right answers of the group came about.
Whether an answer is right travels as a boolean from verdict to report and is never read off a sum of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actors.episode import Episode
from configs.schema import RewardConfig
from judge.verdict import NoVerdict, Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """Reward of one episode, by its parts."""

    total: float
    """accuracy + format - penalty."""
    accuracy: float
    """R_accuracy: the accuracy weight, or 0."""
    format: float
    """R_format: the format weight, or 0."""
    penalty: float
    """P_control: the penalty weight, or 0."""
    is_correct: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """How an episode went: all that its reward depends on, but for the verdict. A recorded row gives it as well."""

    asked: bool
    """It was shown the full image."""
    is_answered: bool
    """There is an answer to judge."""
    is_well_formed: bool
    """Every turn kept the format (R_format of Eq. 4)."""
    offers_tool: bool
    """It began with the quarter view, so there was something to choose."""


def conduct_of(episode: Episode) -> Conduct:
    """What a reward needs to know of an episode."""
    return Conduct(
        asked=episode.asked,
        is_answered=episode.answer is not None,
        is_well_formed=episode.is_well_formed,
        offers_tool=episode.turns[0].view == "quarter",
    )


def direct_share(conducts: Sequence[Conduct], outcomes: Sequence[Outcome]) -> float | None:
    """r of Eq. 5: of the right answers of a group, the share given from the quarter view alone.

    C_direct / (C_direct + C_high) over the scored episodes; None when no answer was right.
    """
    assert len(conducts) == len(outcomes), (len(conducts), len(outcomes))
    asked = [
        conduct.asked for conduct, outcome in zip(conducts, outcomes, strict=True) if _correctness(conduct, outcome)
    ]
    return asked.count(False) / len(asked) if asked else None


def group_rewards(
    conducts: Sequence[Conduct], outcomes: Sequence[Outcome], config: RewardConfig
) -> tuple[Reward | None, ...]:
    """Rewards of the G episodes of one prompt, in their order.

    An episode whose verdict could not be had gets None: it is masked, never scored as wrong, and does not count in
    r either. An episode without an answer is wrong by definition and needs no verdict. Where the tool was not on
    offer (general mode, a picture too small to quarter) there is nothing to choose and no penalty.

    Args:
        conducts: of the G episodes of one sample (see `conduct_of`).
        outcomes: one per episode (see `judge.verdict.spread_outcomes`).
        config: weights, theta, and who pays.
    """
    assert len(conducts) == len(outcomes), (len(conducts), len(outcomes))
    is_tool_offered = _is_tool_offered(conducts)
    share = direct_share(conducts, outcomes)

    def reward(conduct: Conduct, outcome: Outcome) -> Reward | None:
        is_correct = _correctness(conduct, outcome)
        if is_correct is None:
            return None
        pays = is_tool_offered and _pays(conduct, is_correct, share, config)
        accuracy = config.accuracy_weight if is_correct else 0.0
        well_formed = config.format_weight if conduct.is_well_formed else 0.0
        penalty = config.penalty_weight if pays else 0.0
        total = accuracy + well_formed - penalty
        return Reward(total=total, accuracy=accuracy, format=well_formed, penalty=penalty, is_correct=is_correct)

    return tuple(reward(conduct, outcome) for conduct, outcome in zip(conducts, outcomes, strict=True))


def _correctness(conduct: Conduct, outcome: Outcome) -> bool | None:
    """None where nobody knows."""
    if not conduct.is_answered:
        return False
    return None if isinstance(outcome, NoVerdict) else outcome.is_correct


def _is_tool_offered(conducts: Sequence[Conduct]) -> bool:
    offered = {conduct.offers_tool for conduct in conducts}
    assert len(offered) <= 1, "the episodes of a group start from the same view"
    return offered == {True}


def _pays(conduct: Conduct, is_correct: bool, share: float | None, config: RewardConfig) -> bool:
    """Eq. 5 for one scored answer, with the two ablations of Fig. 3a.

    r and theta compare exactly where they should: 1/5 and the literal 0.2 are the same double.
    """
    if config.penalty == "never" or share is None or not conduct.is_answered:
        return False
    if config.applies_to == "correct" and not is_correct:
        return False
    if config.penalty == "always":
        return conduct.asked
    return conduct.asked if share >= config.theta else not conduct.asked
