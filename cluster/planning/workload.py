"""What a step computes: tokens and floating-point operations, from what is assumed of pictures and replies. Pure.

A multiplication and an addition are two operations. The text that a group shares counts once, each view is encoded
once, and a second turn of an episode shows the full view after a reply of its own (`learner.batches`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from actors.prompts import PromptStyle
from configs.learner import LearnerConfig
from configs.schema import Config
from learner.memory import PATCHES_PER_TOKEN, Load, ModelShape, learns_in_rounds

CHARACTERS_PER_TOKEN = 4
QUESTION_TOKENS = 15
"""Of a question, and of the marks around the parts of a prompt."""


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
    """Of what a second prompt adds beside its picture."""
    turn_tokens: int
    """Generated per turn, on average."""
    ask_share: float
    """Share of the episodes that ask for the full view."""
    shows_full_first: bool
    """Whether the first turn shows the full view (`rollout.mode=general`)."""
    group_size: int
    groups: int
    """Played per step."""

    @property
    def first_view(self) -> int:
        return self.visual_tokens if self.shows_full_first else self.visual_tokens // 4

    @property
    def second_turns(self) -> float:
        """Of a group."""
        return 0.0 if self.shows_full_first else self.group_size * self.ask_share

    @property
    def encoded_tokens(self) -> int:
        """Visual tokens of the distinct views of a group."""
        return self.first_view + (self.visual_tokens if self.second_turns else 0)

    @property
    def shared_tokens(self) -> int:
        """Text and picture with which every episode of a group begins."""
        return self.first_view + self.text_tokens

    @property
    def second_prompt(self) -> int:
        return self.visual_tokens + self.second_text_tokens

    @property
    def generated_tokens(self) -> float:
        """By a group."""
        return self.turn_tokens * (self.group_size + self.second_turns)

    @property
    def prefilled_tokens(self) -> float:
        """Prompt tokens that the engine computes for a group."""
        return self.shared_tokens + self.second_turns * self.second_prompt

    @property
    def learned_tokens(self) -> float:
        """That the learner computes for a group."""
        return self.prefilled_tokens + self.generated_tokens

    @property
    def episode_tokens(self) -> float:
        """Of the episodes of a group, shared or not."""
        return self.group_size * self.shared_tokens + self.second_turns * self.second_prompt + self.generated_tokens

    @property
    def token_pairs(self) -> float:
        """(token, token it attends to) in a group: the shared beginning once, then what each episode adds to it."""
        first, second = self.turn_tokens, self.turn_tokens + self.second_prompt + self.turn_tokens
        asking = self.second_turns
        direct = self.group_size - asking

        def own(length: float) -> float:
            return length * (self.shared_tokens + length / 2)

        return self.shared_tokens**2 / 2 + direct * own(first) + asking * own(second)

    @property
    def prefill_pairs(self) -> float:
        """As `token_pairs`, of the prompts alone."""
        before = self.shared_tokens + self.turn_tokens
        return self.shared_tokens**2 / 2 + self.second_turns * self.second_prompt * (before + self.second_prompt / 2)

    def load(self, config: LearnerConfig) -> Load:
        """What a rank computes at a time with this workload."""
        budget, pass_tokens = config.max_tokens_per_micro_batch, config.max_tokens_per_vision_pass
        mine = max(1, math.ceil(config.prompts_per_mini_batch / config.ranks.minimum))
        largest = self.visual_tokens if self.encoded_tokens > self.first_view else self.first_view
        is_large = largest > pass_tokens
        in_rounds = learns_in_rounds(config) and not is_large
        in_pass = min(mine, max(1, pass_tokens // self.encoded_tokens))
        if in_rounds:  # of about as many views each
            in_pass = math.ceil(mine / math.ceil(mine / in_pass))
        groups = min(in_pass if in_rounds else mine, max(1, int(budget // self.learned_tokens)))
        return Load(
            num_tokens=min(budget, math.ceil(groups * self.learned_tokens)),
            num_visual_tokens=largest if is_large else min(pass_tokens, in_pass * self.encoded_tokens),
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
    views = {work.first_view, work.visual_tokens} if work.second_turns else {work.first_view}
    return sum(vision_flops(shape, size) for size in views)


def workload_of(
    config: Config, style: PromptStyle, *, pixels: int, turn_tokens: int, ask_share: float, token_side: int
) -> Workload:
    """The workload of a config, with what is assumed of pictures and replies."""
    return Workload(
        visual_tokens=max(4, round(pixels / token_side**2)),
        token_side=token_side,
        text_tokens=_num_tokens(style.system + style.user) + QUESTION_TOKENS,
        second_text_tokens=_num_tokens(style.followup),
        turn_tokens=turn_tokens,
        ask_share=ask_share,
        shows_full_first=config.rollout.mode == "general",
        group_size=config.rollout.group_size,
        groups=config.train.prompts_per_step,
    )


def _num_tokens(text: str) -> int:
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)
