"""Rewards of a group: R = R_accuracy + R_format - P_control (VisionThink, Eq. 4 and 5).

A pure function of the whole group, since the penalty depends on how the right answers of the group came about.
Whether an answer is right travels as a boolean from verdict to report and is never read off a sum of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actors.episode import Episode
from configs.rewards import RewardConfig
from judge.verdict import NoVerdict, Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """Reward of one episode. Its parts R_accuracy, R_format and P_control are their weights, or 0."""

    total: float
    """accuracy + format - penalty - overlong."""
    accuracy: float
    format: float
    penalty: float
    is_correct: bool
    overlong: float = 0.0
    """Penalty for the length of the episode."""
    turn: float = 0.0
    """Of the first turn's action alone, not in `total`: what DTPO credits that turn with. `resize_image` has none."""


def direct_share(episodes: Sequence[Episode], outcomes: Sequence[Outcome]) -> float | None:
    """r of Eq. 5: of the right answers of a group, the share given from the quarter view alone.

    C_direct / (C_direct + C_high) over the scored episodes; None when no answer was right.
    """
    asked = [episode.asked for episode, outcome in zip(episodes, outcomes, strict=True) if _is_right(episode, outcome)]
    return asked.count(False) / len(asked) if asked else None


def group_rewards(
    episodes: Sequence[Episode], outcomes: Sequence[Outcome], config: RewardConfig
) -> tuple[Reward | None, ...]:
    """Rewards of the G episodes of one prompt, in their order.

    An episode whose verdict could not be had gets None: it is masked, never scored as wrong, and does not count in
    r either. An episode without an answer is wrong by definition and needs no verdict. Where the tool was not on
    offer (general mode, a picture too small to quarter) there is nothing to choose and no penalty.
    """
    share = direct_share(episodes, outcomes)
    views = {episode.turns[0].view for episode in episodes}
    assert len(views) <= 1, "the episodes of a group start from the same view"

    def reward(episode: Episode, outcome: Outcome) -> Reward | None:
        is_correct = _is_right(episode, outcome)
        if is_correct is None:
            return None
        pays = views == {"quarter"} and _pays(episode, is_correct, share, config)
        accuracy = config.accuracy_weight if is_correct else 0.0
        well_formed = config.format_weight if episode.is_well_formed else 0.0
        penalty = config.penalty_weight if pays else 0.0
        overlong = overlong_penalty(episode.num_generated_tokens, config.overlong_tokens, config.overlong_buffer)
        return Reward(
            total=accuracy + well_formed - penalty - overlong,
            accuracy=accuracy,
            format=well_formed,
            penalty=penalty,
            is_correct=is_correct,
            overlong=overlong,
        )

    return tuple(reward(episode, outcome) for episode, outcome in zip(episodes, outcomes, strict=True))


def overlong_penalty(num_tokens: int, longest: int, buffer: int) -> float:
    """DAPO's soft length penalty (arXiv 2503.14476, Eq. 13), negated: 0 up to longest - buffer, 1 from longest on, and
    straight between them. `longest` = 0 penalizes nothing.

    An episode that reaches the limit of its turns need not be near `longest`; it is truncated and has no answer.
    """
    if longest == 0 or num_tokens <= longest - buffer:
        return 0.0
    return 1.0 if num_tokens >= longest else (num_tokens - (longest - buffer)) / buffer


def _is_right(episode: Episode, outcome: Outcome) -> bool | None:
    """None where nobody knows."""
    if episode.answer is None:
        return False
    return None if isinstance(outcome, NoVerdict) else outcome.is_correct


def _pays(episode: Episode, is_correct: bool, share: float | None, config: RewardConfig) -> bool:
    """Eq. 5 for one scored answer, with the two ablations of Fig. 3a.

    r and theta compare exactly where they should: 1/5 and the literal 0.2 are the same double.
    """
    if config.penalty == "never" or share is None or episode.answer is None:
        return False
    if config.applies_to == "correct" and not is_correct:
        return False
    return episode.asked if config.penalty == "always" or share >= config.theta else not episode.asked
