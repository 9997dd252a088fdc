"""Which samples teach when to ask for the full view: the rule of the paper, on counts of right answers. Pure.

    all right on both views                  low: the quarter view is enough
    right at full - right at quarter >= 6    full: the full view is needed      (of 8 rollouts on each view)

Everything between teaches little about the choice and is left out; both classes get the same size.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from configs.require import require

Need = Literal["low", "full"]
MARGIN = 6 / 8
"""Of the rollouts on each view."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How samples are chosen."""

    num_rollouts: int = 8
    """On each view."""
    margin: int | None = None
    """Right answers that the full view must have more than the quarter view; None is 6 of 8, in proportion."""
    per_class: int | None = None
    """Maximum samples of each class; None takes as many as the smaller class has."""

    def __post_init__(self) -> None:
        require(self.num_rollouts >= 1, "--rollouts", self.num_rollouts, "must be at least 1")
        require(
            1 <= self.least_margin <= self.num_rollouts,
            "--margin",
            self.margin,
            f"must be from 1 to --rollouts={self.num_rollouts}",
        )
        require(self.per_class is None or self.per_class >= 1, "--per-class", self.per_class, "must be at least 1")

    @property
    def least_margin(self) -> int:
        return math.ceil(MARGIN * self.num_rollouts) if self.margin is None else self.margin

    def need_of(self, tried: Tried) -> Need | None:
        """The class of a sample; None where it is in neither."""
        if tried.status != "judged":
            return None
        if tried.num_quarter == tried.num_full == self.num_rollouts:
            return "low"
        return "full" if tried.difference >= self.least_margin else None

    def has_enough(self, counts: Mapping[Need | None, int]) -> bool:
        """Whether both classes are full, so that no further sample is needed."""
        return self.per_class is not None and min(counts.get("low", 0), counts.get("full", 0)) >= self.per_class


Status = Literal["judged", "no_verdict", "unreadable", "too_small"]
"""Only judged samples count. `no_verdict`: a judge failed on one of its answers. `too_small`: it has one view only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What came of one sample: of an equal number of rollouts on each view."""

    row: int
    """In the data set that is selected from."""
    status: Status = "judged"
    num_quarter: int = 0
    """Right answers on the quarter view."""
    num_full: int = 0
    """Right answers on the full view."""
    full_size: tuple[int, int] = (0, 0)
    """(height, width) in pixels of the full view."""
    reason: str = ""
    """Why it is not judged."""

    @property
    def difference(self) -> int:
        return self.num_full - self.num_quarter


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    tried: Tried
    need: Need


def select_balanced(tried: Sequence[Tried], rule: Rule) -> list[Selected]:
    """As many samples of each class: the first ones, in the order given (that of drawing, which is random)."""
    by_need: dict[Need, list[Selected]] = {"low": [], "full": []}
    for one in tried:
        if (need := rule.need_of(one)) is not None:
            by_need[need].append(Selected(tried=one, need=need))
    size = min(map(len, by_need.values()))
    size = size if rule.per_class is None else min(size, rule.per_class)
    return [selected for of_class in by_need.values() for selected in of_class[:size]]


def figures(tried: Sequence[Tried], rule: Rule) -> dict[str, Any]:
    """Counts of all samples, by status and class, and the histogram of (full - quarter)."""
    judged = [one for one in tried if one.status == "judged"]
    needs = Counter(map(rule.need_of, judged))
    num_right = {"quarter": sum(one.num_quarter for one in judged), "full": sum(one.num_full for one in judged)}
    return {
        "num_tried": len(tried),
        **{f"num_{status}": count for status, count in _counts(tried).items()},
        "num_low": needs["low"],
        "num_full": needs["full"],
        "num_neither": needs[None],
        **{f"accuracy_{view}": right / max(1, len(judged) * rule.num_rollouts) for view, right in num_right.items()},
        "histogram": histogram(judged, rule.num_rollouts),
    }


def histogram(judged: Iterable[Tried], num_rollouts: int) -> dict[str, int]:
    """Samples by (right at full - right at quarter), from -N to N."""
    counts = Counter(one.difference for one in judged)
    return {f"{difference:+d}": counts[difference] for difference in range(-num_rollouts, num_rollouts + 1)}


def _counts(tried: Iterable[Tried]) -> Mapping[Status, int]:
    counts = Counter(one.status for one in tried)
    statuses: tuple[Status, ...] = ("judged", "no_verdict", "unreadable", "too_small")
    return {status: counts[status] for status in statuses}
