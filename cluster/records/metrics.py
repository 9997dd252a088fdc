"""Metrics of a step and of an evaluation: pure functions of the groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from actors.episode import Episode, PlayedGroup
from actors.needs import NEEDS, Need, need_of
from cluster.records.needed import has_choice, least_tokens, needed_of, shows_the_needed
from cluster.records.tool_metrics import tool_figures
from cluster.step import ScoredGroup, StepBatch
from judge.reward import Reward
from judge.verdict import Outcome, Verdict


def mean(values: Iterable[float]) -> float | None:
    """Mean, or None without values: a missing metric is not zero."""
    found = list(values)
    return fmean(found) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayScore:
    """Scores of a set of episodes. A share is None if it has no episodes."""

    num_episodes: int
    num_unscored: int
    """Episodes without a verdict; excluded from the accuracy."""
    accuracy: float | None
    well_formed_share: float | None
    ask_share: float | None
    ask_share_needed: float | None
    """On samples recorded as needing the full view."""
    ask_share_unneeded: float | None
    visual_token_share: float | None
    """Visual-token ratio: visual tokens used, relative to always-full."""
    need_share: float | None
    """Fraction of the samples recorded as needing the full view."""
    right_tool_share: float | None
    """The least of the next three. Only episodes count that begin with the quarter view of a sample with a record of
    what it needs."""
    right_tool_share_quarter: float | None
    """On samples that need the quarter view alone: fraction answered without a tool call."""
    right_tool_share_region: float | None
    """On samples that need a region: fraction answered after one crop, whatever it showed, and nothing else."""
    right_tool_share_full: float | None
    """On samples that need the full view: fraction answered after the full view and nothing else."""
    visual_token_optimum: float | None
    """The visual-token ratio if each of these samples were shown exactly what it needs."""


def score_play(groups: Sequence[tuple[PlayedGroup, tuple[Outcome, ...]]]) -> PlayScore:
    """Scores over all episodes of all groups."""
    episodes: list[tuple[PlayedGroup, Episode]] = [(group, e) for group, _ in groups for e in group.episodes]
    verdicts = [outcome for _, outcomes in groups for outcome in outcomes if isinstance(outcome, Verdict)]
    spent = sum(episode.num_visual_tokens for _, episode in episodes)
    always_full = sum(group.num_full_tokens for group, _ in episodes)
    known = [(group.needs_full, e) for group, e in episodes if group.needs_full is not None]
    recorded = [(group, e, needed) for group, e in episodes if has_choice(e) and (needed := needed_of(group))]
    right: dict[Need, float | None] = {
        need: mean(shows_the_needed(e, needed) for _, e, needed in recorded if need_of(needed) == need)
        for need in NEEDS
    }
    return PlayScore(
        num_episodes=len(episodes),
        num_unscored=len(episodes) - len(verdicts),
        accuracy=mean(verdict.is_correct for verdict in verdicts),
        well_formed_share=mean(episode.is_well_formed for _, episode in episodes),
        ask_share=mean(episode.asked for _, episode in episodes),
        ask_share_needed=mean(episode.asked for needs_full, episode in known if needs_full),
        ask_share_unneeded=mean(episode.asked for needs_full, episode in known if not needs_full),
        visual_token_share=spent / always_full if always_full else None,
        need_share=mean(bool(needs_full) for needs_full, _ in known),
        right_tool_share=min((share for share in right.values() if share is not None), default=None),
        right_tool_share_quarter=right["quarter"],
        right_tool_share_region=right["region"],
        right_tool_share_full=right["full"],
        visual_token_optimum=(
            sum(least_tokens(group, e, needed) for group, e, needed in recorded)
            / sum(group.num_full_tokens for group, _, _ in recorded)
            if recorded
            else None
        ),
    )


def summarize(batch: StepBatch, policy_version: int) -> dict[str, float]:
    """Metrics of the groups of a step. `policy_version`: the version before the update."""
    scored: tuple[ScoredGroup, ...] = batch.scored
    play = score_play([(group.played, group.outcomes) for group in scored])
    rewards: list[Reward] = [reward for group in scored for reward in group.rewards if reward is not None]
    episodes = [episode for group in scored for episode in group.played.episodes]
    trained = [episode for group in batch.trained for episode in group.played.episodes]
    parts = {name: mean(getattr(reward, name) for reward in rewards) for name in ("box", "area", "budget")}
    figures = {
        "reward/mean": mean(reward.total for reward in rewards),
        "reward/accuracy": play.accuracy,
        "reward/format": play.well_formed_share,
        "reward/penalty": mean(reward.penalty for reward in rewards),
        **{f"reward/{name}": part for name, part in parts.items() if part},  # by default none of these is in use
        "policy/ask_share": play.ask_share,
        "policy/ask_share_needed": play.ask_share_needed,
        "policy/ask_share_unneeded": play.ask_share_unneeded,
        "policy/visual_token_share": play.visual_token_share,
        "policy/visual_token_optimum": play.visual_token_optimum,
        "policy/right_tool_share": play.right_tool_share,
        **{f"policy/right_tool_share_{need}": getattr(play, f"right_tool_share_{need}") for need in NEEDS},
        **tool_figures(episodes),
        "policy/completion_tokens": mean(episode.num_generated_tokens for episode in episodes),
        "policy/staleness_max": max((policy_version - episode.oldest_version for episode in trained), default=None),
        "policy/mixed_version_share": mean(e.oldest_version != e.newest_version for e in trained),
        "groups/trained": len(batch.trained),
        "groups/no_signal": len(batch.without_signal),
        "groups/lost": sum(not group.is_skipped_row for group in batch.lost),
        "groups/skipped": sum(group.is_skipped_row for group in batch.lost),
        "groups/drawn": len(batch.drawn),
        "episodes/scored": len(rewards),
        "episodes/unscored": play.num_unscored,
        "time/collect_s": batch.seconds,
        "time/judge_wait_s": batch.judge_wait_s,
    }
    return {name: float(figure) for name, figure in figures.items() if figure is not None}
