"""What another judge would have changed about a run: sums that add up step by step. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cluster.judging.recorded import RecordedEpisode, RecordedGroup
from judge.reward import Reward
from judge.trust.check import Rate
from judge.verdict import NoVerdict, Outcome
from learner.advantage import has_signal

Decision = Literal["right", "wrong", "no verdict"]
DECISIONS: tuple[Decision, ...] = ("right", "wrong", "no verdict")
MAX_EXAMPLES_PER_CHANGE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedGroup:
    """A recorded group with what the other judge says of it; one entry per episode."""

    recorded: RecordedGroup
    outcomes: tuple[Outcome, ...]
    rewards: tuple[Reward | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedRow:
    """An answer that the other judge decides differently."""

    step: int
    question: str
    reference: str
    prediction: str
    before: Outcome
    after: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """Of the episodes that have the figure."""

    total: float = 0.0
    num: int = 0

    @property
    def mean(self) -> float | None:
        return self.total / self.num if self.num else None

    def __add__(self, other: Sum) -> Sum:
        return Sum(total=self.total + other.total, num=self.num + other.num)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Sums over some groups, before and after. Rewards and accuracy are of the scored episodes."""

    num_episodes: int = 0
    decisions: Mapping[tuple[Decision, Decision], int] = field(default_factory=dict)
    """(before, after) -> episodes, of those that gave an answer: the others are wrong under every judge."""
    reward_before: Sum = Sum()
    reward_after: Sum = Sum()
    accuracy_before: Sum = Sum()
    accuracy_after: Sum = Sum()
    num_signal_gained: int = 0
    """Groups whose rewards were all alike and would not be."""
    num_signal_lost: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            num_episodes=self.num_episodes + other.num_episodes,
            decisions=Counter(self.decisions) + Counter(other.decisions),
            reward_before=self.reward_before + other.reward_before,
            reward_after=self.reward_after + other.reward_after,
            accuracy_before=self.accuracy_before + other.accuracy_before,
            accuracy_after=self.accuracy_after + other.accuracy_after,
            num_signal_gained=self.num_signal_gained + other.num_signal_gained,
            num_signal_lost=self.num_signal_lost + other.num_signal_lost,
        )

    @property
    def changed(self) -> Rate:
        """Of the answers, those decided differently; losing or getting a verdict counts."""
        num_changed = sum(num for (before, after), num in self.decisions.items() if before != after)
        return Rate(num_hits=num_changed, num_cases=sum(self.decisions.values()))

    def count(self, *, before: Decision | None = None, after: Decision | None = None) -> int:
        """Answers with these decisions; None takes any."""
        return sum(num for (old, new), num in self.decisions.items() if before in (None, old) and after in (None, new))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What had to be asked, and what it took."""

    num_from_record: int = 0
    """Answers whose recorded outcome stands, without a look at the judge."""
    num_cache_hits: int = 0
    num_llm_calls: int = 0
    cost_usd: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReport:
    steps: Mapping[int, Tally]
    """In order."""
    asked: Asked
    examples: tuple[ChangedRow, ...]

    @property
    def total(self) -> Tally:
        return sum(self.steps.values(), Tally())

    def figures(self) -> dict[str, object]:
        """For `--json`. A mean of nothing is null."""
        total = self.total
        num_unjudged = total.count(after="no verdict")
        stay_right = total.count(before="right", after="right")
        return {
            "num_episodes": total.num_episodes,
            "num_judged": total.changed.num_cases - num_unjudged,
            "num_unjudged": num_unjudged,
            "num_changed": total.changed.num_hits,
            "changed_share": total.changed.share,
            "changed_share_interval": list(total.changed.interval),
            "num_gained_right": total.count(after="right") - stay_right,
            "num_lost_right": total.count(before="right") - stay_right,
            "num_signal_gained": total.num_signal_gained,
            "num_signal_lost": total.num_signal_lost,
            **means(total),
            "num_llm_calls": self.asked.num_llm_calls,
            "num_cache_hits": self.asked.num_cache_hits,
            "num_from_record": self.asked.num_from_record,
            "cost_usd": self.asked.cost_usd,
            "steps": [{"step": step, **means(tally)} for step, tally in self.steps.items()],
        }


def means(tally: Tally) -> dict[str, float | None]:
    return {
        "reward_mean_before": tally.reward_before.mean,
        "reward_mean_after": tally.reward_after.mean,
        "accuracy_before": tally.accuracy_before.mean,
        "accuracy_after": tally.accuracy_after.mean,
    }


def decision(outcome: Outcome) -> Decision:
    if isinstance(outcome, NoVerdict):
        return "no verdict"
    return "right" if outcome.is_correct else "wrong"


def tally_groups(groups: Sequence[ReplayedGroup], min_scored: int) -> Tally:
    """Sums over groups. A group with fewer than `min_scored` verdicts has no signal."""
    pairs = [pair for group in groups for pair in _pairs(group)]
    before = [episode.reward for group in groups for episode in group.recorded.episodes]
    after = [total for group in groups for total in _totals(group)]
    signals = [
        (has_signal([episode.reward for episode in group.recorded.episodes], min_scored), has_signal(new, min_scored))
        for group in groups
        for new in (_totals(group),)
    ]
    return Tally(
        num_episodes=len(pairs),
        decisions=Counter(
            (decision(episode.outcome), decision(outcome)) for episode, outcome in pairs if episode.answer is not None
        ),
        reward_before=_sum(before),
        reward_after=_sum(after),
        accuracy_before=_sum([_correctness(episode.outcome) for episode, _ in pairs]),
        accuracy_after=_sum([_correctness(outcome) for _, outcome in pairs]),
        num_signal_gained=signals.count((False, True)),
        num_signal_lost=signals.count((True, False)),
    )


def changed_rows(groups: Sequence[ReplayedGroup]) -> Iterator[ChangedRow]:
    """Answers decided differently, in the order of the record."""
    for group in groups:
        for episode, outcome in _pairs(group):
            if episode.answer is not None and decision(episode.outcome) != decision(outcome):
                yield ChangedRow(
                    step=group.recorded.step,
                    question=group.recorded.question,
                    reference=group.recorded.reference,
                    prediction=episode.answer,
                    before=episode.outcome,
                    after=outcome,
                )


def add_examples(kept: Sequence[ChangedRow], rows: Sequence[ChangedRow]) -> tuple[ChangedRow, ...]:
    """The first few different rows of each kind of change."""
    examples = list(kept)
    for row in rows:
        kind = decision(row.before), decision(row.after)
        alike = [old for old in examples if (decision(old.before), decision(old.after)) == kind]
        is_new = (row.question, row.reference, row.prediction) not in {
            (old.question, old.reference, old.prediction) for old in alike
        }
        if is_new and len(alike) < MAX_EXAMPLES_PER_CHANGE:
            examples.append(row)
    return tuple(examples)


def _pairs(group: ReplayedGroup) -> Iterator[tuple[RecordedEpisode, Outcome]]:
    return zip(group.recorded.episodes, group.outcomes, strict=True)


def _totals(group: ReplayedGroup) -> list[float | None]:
    return [None if reward is None else reward.total for reward in group.rewards]


def _correctness(outcome: Outcome) -> float | None:
    return None if isinstance(outcome, NoVerdict) else float(outcome.is_correct)


def _sum(values: Sequence[float | None]) -> Sum:
    found = [value for value in values if value is not None]
    return Sum(total=math.fsum(found), num=len(found))
