"""Rewards of a group: R = R_accuracy + R_format + R_box - P_control - P_area - P_budget.

R_accuracy, R_format and P_control are VisionThink's, Eq. 4 and 5. R_box and P_area follow AdaptVision (arXiv
2512.03794), whose box is rewarded where a vision model finds the evidence in it; there is no such judge here, so that a
crop counts if the answer after it is right. P_budget is a price of visual tokens above a budget.

A pure function of the whole group, since penalties depend on how the right answers of the group came about. Whether an
answer is right travels as a boolean from verdict to report and is never read off a sum of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from actors.episode import Episode
from actors.views import Crop
from configs.rewards import RewardConfig
from judge.verdict import NoVerdict, Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """Reward of one episode. Its parts R_accuracy, R_format and R_box are their weights, or 0."""

    total: float
    """accuracy + format + box - penalty - overlong."""
    accuracy: float
    format: float
    penalty: float
    """P_control + P_area + P_budget."""
    is_correct: bool
    box: float = 0.0
    area: float = 0.0
    """P_area: part of `penalty`, as is the next."""
    budget: float = 0.0
    """P_budget."""
    overlong: float = 0.0
    """Penalty for the length of the episode."""

    @property
    def control(self) -> float:
        """P_control."""
        return round(self.penalty - self.area - self.budget, 12)

    @property
    def turn(self) -> float:
        """Of the calls for crops alone, with which DTPO credits the first turn: `resize_image` has none."""
        return self.box - self.area


def direct_share(episodes: Sequence[Episode], outcomes: Sequence[Outcome]) -> float | None:
    """r of Eq. 5: of the right answers of a group, the share given from the first view alone.

    C_direct / (C_direct + C_high) over the scored episodes; None when no answer was right.
    """
    asked = [episode.asked for episode, outcome in zip(episodes, outcomes, strict=True) if _is_right(episode, outcome)]
    return asked.count(False) / len(asked) if asked else None


def group_rewards(
    episodes: Sequence[Episode], outcomes: Sequence[Outcome], config: RewardConfig
) -> tuple[Reward | None, ...]:
    """Rewards of the G episodes of one prompt, in their order.

    An episode whose verdict could not be had gets None: it is masked, never scored as wrong, and does not count in
    r or in the mean area either. An episode without an answer is wrong by definition and needs no verdict. Where no
    tool was on offer (general mode, a picture too small to quarter) there is nothing to choose and no penalty.
    """
    share = direct_share(episodes, outcomes)
    views = {episode.turns[0].view for episode in episodes}
    assert len(views) <= 1, "the episodes of a group start from the same view"
    has_choice = views == {"quarter"}
    payers = [
        has_choice and _can_pay(episode, _is_right(episode, outcome), config)
        for episode, outcome in zip(episodes, outcomes, strict=True)
    ]
    areas = [area for episode, pays in zip(episodes, payers, strict=True) if pays and (area := crop_area(episode))]
    mean_area = fmean(areas) if areas else None

    def reward(episode: Episode, outcome: Outcome, can_pay: bool) -> Reward | None:
        is_correct = _is_right(episode, outcome)
        if is_correct is None:
            return None
        area = _area_penalty(episode, mean_area, config) if can_pay else 0.0
        budget = _budget_penalty(episode, config) if can_pay else 0.0
        control = config.penalty_weight if can_pay and _pays(episode, share, config) else 0.0
        accuracy = config.accuracy_weight if is_correct else 0.0
        well_formed = config.format_weight if episode.is_well_formed else 0.0
        box = config.box_weight if is_correct and crop_area(episode) else 0.0
        penalty = control + area + budget
        overlong = overlong_penalty(episode.num_generated_tokens, config.overlong_tokens, config.overlong_buffer)
        return Reward(
            total=accuracy + well_formed + box - penalty - overlong,
            accuracy=accuracy,
            format=well_formed,
            penalty=penalty,
            is_correct=is_correct,
            box=box,
            area=area,
            budget=budget,
            overlong=overlong,
        )

    return tuple(reward(*each) for each in zip(episodes, outcomes, payers, strict=True))


def crop_area(episode: Episode) -> float:
    """Area of the crops that an episode was shown, each time it was, relative to the picture's; 0 without any."""
    tokens = sum(turn.num_visual_tokens for turn in episode.calls if isinstance(turn.view, Crop))
    return tokens / num_full_tokens(episode)


def num_full_tokens(episode: Episode) -> int:
    """Visual tokens of the full view: the quarter view has exactly a quarter of them."""
    first = episode.turns[0]
    return first.num_visual_tokens * (4 if first.view == "quarter" else 1)


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


def _can_pay(episode: Episode, is_correct: bool | None, config: RewardConfig) -> bool:
    """Whether penalties apply to a scored answer at all."""
    return episode.answer is not None and is_correct is not None and (is_correct or config.applies_to == "all")


def _pays(episode: Episode, share: float | None, config: RewardConfig) -> bool:
    """Whether P_control applies: Eq. 5, the two ablations of Fig. 3a, and AdaptVision's.

    r and theta compare exactly where they should: 1/5 and the literal 0.2 are the same double.
    """
    if config.penalty == "never" or share is None:
        return False
    if episode.asked:
        return config.penalty != "threshold" or share >= config.theta
    return config.penalty != "always" and share < config.theta


def _area_penalty(episode: Episode, mean_area: float | None, config: RewardConfig) -> float:
    """P_area = area_weight * clip(area / mean area - 1, 0, 1); the mean is over the group's answers after a crop that
    penalties apply to."""
    if mean_area is None:
        return 0.0
    return config.area_weight * min(max(crop_area(episode) / mean_area - 1.0, 0.0), 1.0)


def _budget_penalty(episode: Episode, config: RewardConfig) -> float:
    """P_budget = budget_weight * max(0, visual tokens / full view's - token_budget)."""
    used = episode.num_visual_tokens / num_full_tokens(episode)
    return config.budget_weight * max(used - config.token_budget, 0.0)
