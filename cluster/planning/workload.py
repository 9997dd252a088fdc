"""What a step computes: tokens and floating-point operations, from what is assumed of pictures and replies. Pure.

A multiplication and an addition are two operations. The text that a group shares counts once, each view is encoded
once, and every later turn of an episode shows a view after a reply of its own (`learner.batches`). The full view is the
same for a whole group; regions differ from call to call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from actors.prompts import PromptStyle
from actors.tools.registry import Toolbox, toolbox_of
from configs.learner import LearnerConfig
from configs.require import require
from configs.schema import Config
from learner.memory import PATCHES_PER_TOKEN, Load, ModelShape, learns_in_rounds

CHARACTERS_PER_TOKEN = 4
QUESTION_TOKENS = 15
"""Of a question, and of the marks around the parts of a prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """What a config does not say of pictures and replies; means."""

    pixels: int
    """Of a full view."""
    turn_tokens: int
    """Generated per turn."""
    ask_share: float
    """Share of the episodes that call a tool."""
    calls: float | None
    """Calls of such an episode; None for the middle of one and as many as it may have. They are spread evenly over the
    tools, as far as these may be called."""
    region_share: float
    """Area of a region, as a fraction of the picture's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One group, and how many of them a step has."""

    visual_tokens: int
    """Of a full view."""
    token_side: int
    """Pixels of a visual token's side."""
    text_tokens: int
    """Of a first prompt beside its picture: system text, question, tool."""
    second_text_tokens: int
    """Of what a later prompt adds beside its picture."""
    turn_tokens: int
    """Generated per turn, on average."""
    ask_share: float
    """Share of the episodes that call a tool."""
    shows_full_first: bool
    """Whether the first turn shows the full view (`rollout.mode=general`)."""
    group_size: int
    groups: int
    """Played per step."""
    full_calls: float = 1.0
    """Of an episode that calls a tool: calls for the full view."""
    region_calls: float = 0.0
    """Calls for a region."""
    region_tokens: int = 0
    """Visual tokens of a region."""

    @property
    def first_view(self) -> int:
        return self.visual_tokens if self.shows_full_first else self.visual_tokens // 4

    @property
    def calls(self) -> float:
        """Of an episode that calls a tool."""
        return self.full_calls + self.region_calls

    @property
    def asking(self) -> float:
        """Episodes of a group that call a tool."""
        return 0.0 if self.shows_full_first else self.group_size * self.ask_share

    @property
    def views(self) -> dict[int, float]:
        """Visual tokens of the distinct views of a group, and how many there are of each size."""
        sizes = [(self.first_view, 1.0)]
        if self.asking and self.full_calls:
            sizes.append((self.visual_tokens, 1.0))
        if self.asking and self.region_calls:
            sizes.append((self.region_tokens, self.asking * self.region_calls))
        found: dict[int, float] = {}
        for size, num in sizes:
            found[size] = found.get(size, 0.0) + num
        return found

    @property
    def encoded_tokens(self) -> float:
        """Visual tokens of the distinct views of a group."""
        return sum(size * num for size, num in self.views.items())

    @property
    def shared_tokens(self) -> int:
        """Text and picture with which every episode of a group begins."""
        return self.first_view + self.text_tokens

    @property
    def later_prompts(self) -> float:
        """What the calls of an episode add to its prompt, its own replies apart."""
        shown = self.full_calls * self.visual_tokens + self.region_calls * self.region_tokens
        return shown + self.calls * self.second_text_tokens

    @property
    def last_prompt(self) -> float:
        """Length of the last prompt of an episode that calls a tool."""
        return self.shared_tokens + self.later_prompts + self.calls * self.turn_tokens

    @property
    def generated_tokens(self) -> float:
        """By a group."""
        return self.turn_tokens * (self.group_size + self.asking * self.calls)

    @property
    def prefilled_tokens(self) -> float:
        """Prompt tokens that the engine computes for a group."""
        return self.shared_tokens + self.asking * self.later_prompts

    @property
    def learned_tokens(self) -> float:
        """That the learner computes for a group."""
        return self.prefilled_tokens + self.generated_tokens

    @property
    def episode_tokens(self) -> float:
        """Of the episodes of a group, shared or not."""
        return self.group_size * self.shared_tokens + self.asking * self.later_prompts + self.generated_tokens

    @property
    def token_pairs(self) -> float:
        """(token, token it attends to) in a group: the shared beginning once, then what each episode adds to it."""
        direct = self.turn_tokens
        called = self.later_prompts + (1 + self.calls) * self.turn_tokens

        def own(length: float) -> float:
            return length * (self.shared_tokens + length / 2)

        return self.shared_tokens**2 / 2 + (self.group_size - self.asking) * own(direct) + self.asking * own(called)

    @property
    def prefill_pairs(self) -> float:
        """As `token_pairs`, of the prompts alone, as if all calls of an episode added as much to them."""
        calls = self.calls
        added = self.later_prompts / calls if calls else 0.0
        first = calls * added * (self.shared_tokens + self.turn_tokens + added / 2)
        before = calls * (calls - 1) / 2 * added * (self.turn_tokens + added)
        return self.shared_tokens**2 / 2 + self.asking * (first + before)

    def load(self, config: LearnerConfig) -> Load:
        """What a rank computes at a time with this workload."""
        budget, pass_tokens = config.max_tokens_per_micro_batch, config.max_tokens_per_vision_pass
        mine = max(1, math.ceil(config.prompts_per_mini_batch / config.ranks.minimum))
        largest = max(self.views)
        is_large = largest > pass_tokens
        in_rounds = learns_in_rounds(config) and not is_large
        in_pass = min(mine, max(1, int(pass_tokens // self.encoded_tokens)))
        if in_rounds:  # of about as many views each
            in_pass = math.ceil(mine / math.ceil(mine / in_pass))
        groups = min(in_pass if in_rounds else mine, max(1, int(budget // self.learned_tokens)))
        return Load(
            num_tokens=min(budget, math.ceil(groups * self.learned_tokens)),
            num_visual_tokens=largest if is_large else min(pass_tokens, math.ceil(in_pass * self.encoded_tokens)),
            recomputes_blocks=is_large,
        )


def language_flops(shape: ModelShape, tokens: float, pairs: float) -> float:
    """A forward pass through the layers."""
    text = shape.text
    return 2 * text.depth * text.layer * tokens + 4 * text.query_width * text.depth * pairs


def head_flops(shape: ModelShape, tokens: float) -> float:
    """The output layer, at the generated tokens."""
    return 2 * shape.embedding * tokens


def vision_flops(shape: ModelShape, visual_tokens: float) -> float:
    """A forward pass of the tower over one view."""
    tower, patches = shape.vision, PATCHES_PER_TOKEN * visual_tokens
    seen = shape.whole_share * patches + (1 - shape.whole_share) * min(shape.window_patches, patches)
    unit = PATCHES_PER_TOKEN * tower.width
    merger = shape.num_features * (unit * unit + unit * shape.text.width)
    return 2 * (tower.depth * tower.layer * patches + merger * visual_tokens) + 4 * tower.width * tower.depth * (
        seen * patches
    )


def views_flops(shape: ModelShape, work: Workload) -> float:
    """A forward pass of the tower over the distinct views of a group."""
    return sum(num * vision_flops(shape, size) for size, num in work.views.items())


def workload_of(config: Config, style: PromptStyle, assumed: Assumed, *, token_side: int) -> Workload:
    """The workload of a config and its tools.

    Raises:
        ValueError: the template has no texts for these tools, or episodes may not have so many calls.
    """
    toolbox = toolbox_of(config.rollout.tools)
    most = toolbox.most_calls
    expected = (1 + most) / 2 if assumed.calls is None else assumed.calls
    require(1 <= expected <= most, "--calls", expected, f"must be from 1 to {most} with rollout.tools")
    full_calls = expected * sum(tool.shows == "full" for tool in toolbox.tools) / len(toolbox.tools)
    regions = [tool for tool in toolbox.tools if tool.shows == "region"]
    if regions:
        full = (toolbox.max_calls(tool) for tool in toolbox.tools if tool.shows == "full")
        full_calls = min(full_calls, sum(most if limit is None else limit for limit in full))
    visual_tokens = max(4, round(assumed.pixels / token_side**2))
    first, later = _texts(style, toolbox)
    return Workload(
        visual_tokens=visual_tokens,
        token_side=token_side,
        text_tokens=_num_tokens(first) + QUESTION_TOKENS,
        second_text_tokens=_num_tokens(later),
        turn_tokens=assumed.turn_tokens,
        ask_share=assumed.ask_share,
        shows_full_first=config.rollout.mode == "general",
        group_size=config.rollout.group_size,
        groups=config.train.prompts_per_step,
        full_calls=full_calls,
        region_calls=expected - full_calls,
        region_tokens=max(1, round(assumed.region_share * visual_tokens)) if regions else 0,
    )


def _texts(style: PromptStyle, toolbox: Toolbox) -> tuple[str, str]:
    """Of a first prompt, and of a later one: the longest that a tool has."""
    if toolbox.is_resize_alone:
        return style.system + style.user, style.followup
    later = (style.followup_text(toolbox, tool.name) for tool in toolbox.tools)
    return style.system_text(toolbox) + style.user_text(toolbox, ""), max(later, key=len)


def _num_tokens(text: str) -> int:
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)
