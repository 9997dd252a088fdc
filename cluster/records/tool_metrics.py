"""What tools are called, what they cost, and what they are worth: pure functions of episodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from actors.episode import Episode
from actors.tools.resize import RESIZE

TOOL_SHARE = "policy/tool_share/"
RIGHT_REGION = "policy/right_tool_share_region"


def tool_figures(episodes: Sequence[Episode]) -> dict[str, float]:
    """Metrics of the tool calls of a step; a mean over nothing is left out.

    policy/calls_per_episode      views that tools showed
    policy/refused_per_episode    calls that were refused and answered
    policy/tokens_per_call        visual tokens of a view that a tool showed
    policy/tool_share/NAME        of the calls, those of this tool
    """
    if not episodes:
        return {}
    calls = [turn for episode in episodes for turn in episode.calls]
    num_refused = sum(turn.view is None for episode in episodes for turn in episode.turns)
    figures = {
        "policy/calls_per_episode": len(calls) / len(episodes),
        "policy/refused_per_episode": num_refused / len(episodes),
    }
    if calls:
        figures["policy/tokens_per_call"] = sum(turn.num_visual_tokens for turn in calls) / len(calls)
    by_tool = Counter(turn.tool for turn in calls if turn.tool is not None)
    return figures | {TOOL_SHARE + name: count / len(calls) for name, count in sorted(by_tool.items())}


def shows_tool_choice(metrics: Sequence[Mapping[str, float]]) -> bool:
    """Whether a run called other tools than the paper's, or its data set records regions."""
    shares = {name for figures in metrics for name in figures if name.startswith(TOOL_SHARE)}
    return bool(shares - {TOOL_SHARE + RESIZE.name}) or any(RIGHT_REGION in figures for figures in metrics)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedPlay:
    """One sample, answered with tools on offer and without: the same first view, greedily, judged in the same way."""

    is_correct: bool
    """With tools on offer."""
    asked: bool
    """Whether a tool was called."""
    is_correct_without: bool
    """Without tools."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolEffect:
    """What tools are worth, as fractions of the samples (MED, arXiv 2602.01334).

    tool_gain = accuracy with tools - accuracy without (the intrinsic one), and exactly

        tool_gain = gain_by_call + gain_by_prompt - harm_by_call - harm_by_prompt

    Gains are samples that are right only with tools, harms those that are right only without. They are due to the
    `call` where a tool was called, else to the `prompt`, which declares tools and is answered without them (the
    schema's effect in the paper). Over a training run, what the policy learned splits in the same way (`drift`).
    """

    num_samples: int
    intrinsic_accuracy: float
    gain_by_call: float
    gain_by_prompt: float
    harm_by_call: float
    harm_by_prompt: float

    @property
    def tool_gain(self) -> float:
        return self.gain_by_call + self.gain_by_prompt - self.harm_by_call - self.harm_by_prompt

    def figures(self) -> dict[str, float]:
        return {
            "tool_gain": self.tool_gain,
            "tool_gain_by_call": self.gain_by_call,
            "tool_gain_by_prompt": self.gain_by_prompt,
            "tool_harm_by_call": self.harm_by_call,
            "tool_harm_by_prompt": self.harm_by_prompt,
        }


def tool_effect(plays: Iterable[PairedPlay]) -> ToolEffect | None:
    """The effect over these samples; None without any."""
    found = list(plays)
    if not found:
        return None
    kinds = Counter((play.is_correct, play.is_correct_without, play.asked) for play in found)

    def share(is_correct: bool, is_correct_without: bool, asked: bool) -> float:
        return kinds[is_correct, is_correct_without, asked] / len(found)

    return ToolEffect(
        num_samples=len(found),
        intrinsic_accuracy=sum(play.is_correct_without for play in found) / len(found),
        gain_by_call=share(True, False, True),
        gain_by_prompt=share(True, False, False),
        harm_by_call=share(False, True, True),
        harm_by_prompt=share(False, True, False),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """What changed between two evaluations of one split: accuracy with tools = intrinsic + tool, both as changes."""

    intrinsic: float
    """Change of the accuracy without tools: what the policy learned to see."""
    tool: float
    """Change of the tool gain: what it learned to do with tools, and not to do."""


def drift(before: Mapping[str, float], after: Mapping[str, float]) -> Drift | None:
    """From the recorded figures of two evaluations; None where an accuracy is missing."""
    with_tools, without = "heldout/accuracy", "heldout/accuracy_quarter"
    if any(name not in figures for figures in (before, after) for name in (with_tools, without)):
        return None
    intrinsic = after[without] - before[without]
    return Drift(intrinsic=intrinsic, tool=after[with_tools] - before[with_tools] - intrinsic)
