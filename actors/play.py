"""Generates episodes with anything that implements `Generate`: the engine in a run, a script in tests.

Every episode is a separate coroutine. Its second turn starts as soon as its first turn ends: there are no barriers
between the episodes of a group, between groups, or between workers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from actors.episode import (
    Episode,
    EpisodeId,
    Finish,
    FinishReason,
    SampleRef,
    Status,
    Turn,
    VersionSpan,
    View,
    next_move,
)
from actors.errors import DataError
from actors.images import ViewSpec, can_quarter, num_visual_tokens, quarter_view
from actors.prompts import ChatRenderer, parse_reply
from configs.schema import RolloutConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownImage:
    """One image as the engine receives it."""

    picture: Image.Image
    """RGB. Created once per view and shared by all turns that show it: read-only."""
    key: str
    """Identifies the content: equal keys mean equal pixels. Engines use it as cache key."""
    num_visual_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What an engine sampled for one prompt."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    version_spans: tuple[VersionSpan, ...]
    """As in `Turn`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    temperature: float
    """0 is greedy."""
    max_tokens: int
    top_p: float = 1.0
    """Sample from the most likely tokens that together have this probability."""
    seed: int | None = None
    """Of this completion alone; None draws from the engine's own random stream."""
    has_logprobs: bool = True
    """Without them, which is faster, they are NaN: nothing can be learned from such a turn."""


OnTokens = Callable[[tuple[int, ...]], None]
"""Is told of the tokens of a turn as they are sampled."""


class Generate(Protocol):
    """Samples one completion. Prompt ids hold one placeholder per visual token of `images`, in order."""

    async def __call__(
        self, prompt_ids: tuple[int, ...], images: tuple[ShownImage, ...], sampling: Sampling
    ) -> Completion: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """The views of one sample."""

    full: ShownImage
    quarter: ShownImage | None
    """None where the image is too small to quarter."""


def make_views(full: np.ndarray, spec: ViewSpec, image_sha256: str) -> Views:
    """The views made from a full view uint8 [H, W, 3]. The size is part of the key: equal bytes can differ in shape."""

    def shown(pixels: np.ndarray, view: View) -> ShownImage:
        height, width = pixels.shape[:2]
        count = num_visual_tokens(height, width, spec)
        key = f"{image_sha256}:{view}:{height}x{width}"
        return ShownImage(picture=Image.fromarray(pixels), key=key, num_visual_tokens=count)

    height, width = full.shape[:2]
    quarter = shown(quarter_view(full), "quarter") if can_quarter(height, width, spec) else None
    return Views(full=shown(full, "full"), quarter=quarter)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How an episode is played."""

    first_view: View
    """`quarter` unless the image is too small for it."""
    offers_tool: bool
    """The tool is available, provided the first view is the quarter view."""
    sampling: Sampling
    max_prompt_tokens: int


Kind = Literal["policy", "always_full", "always_quarter"]
"""`policy`: as trained by the config. The other two are the baselines: one view, one turn, no tool."""


def rules_for(kind: Kind, config: RolloutConfig, *, greedy: bool) -> Rules:
    """The rules for episodes of one kind."""
    efficient = config.mode == "efficient"
    return Rules(
        first_view="quarter" if kind == "always_quarter" or (kind == "policy" and efficient) else "full",
        offers_tool=kind == "policy" and efficient,
        sampling=Sampling(temperature=0.0 if greedy else config.temperature, max_tokens=config.max_turn_tokens),
        max_prompt_tokens=config.max_prompt_tokens,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayRequest:
    """Request for the rollout of one group."""

    ref: SampleRef
    kind: Kind
    greedy: bool
    num_episodes: int
    run: str
    step: int
    attempt: int

    @property
    def episode_ids(self) -> tuple[EpisodeId, ...]:
        return tuple(
            EpisodeId(run=self.run, step=self.step, sample=self.ref.uid, index=index, attempt=self.attempt)
            for index in range(self.num_episodes)
        )


async def play_episode(
    generate: Generate, renderer: ChatRenderer, views: Views, question: str, rules: Rules, episode_id: EpisodeId
) -> Episode:
    """One or two turns; the second shows the full view after a tool call in the first."""
    quarter = views.quarter if rules.first_view == "quarter" else None
    offers_tool = rules.offers_tool and quarter is not None
    images: tuple[ShownImage, ...] = (quarter or views.full,)
    prompt_ids = renderer.first_turn(question, images[0].num_visual_tokens, offers_tool=offers_tool)
    turns: list[Turn] = []
    while True:
        completion = await generate(prompt_ids, images, rules.sampling)
        text = renderer.reply_text(completion.token_ids)
        turns.append(_turn(prompt_ids, completion, text, images[-1], "quarter" if images[-1] is quarter else "full"))
        move = next_move(parse_reply(text), completion.finish_reason, offers_tool=offers_tool and len(turns) == 1)
        if not isinstance(move, Finish):
            images = (*images, views.full)
            prompt_ids = renderer.second_turn(prompt_ids, completion.token_ids, views.full.num_visual_tokens)
            if len(prompt_ids) <= rules.max_prompt_tokens:
                continue
            move = Finish(status=Status.TRUNCATED, answer=None, is_well_formed=False)
        return Episode(
            id=episode_id,
            turns=tuple(turns),
            status=move.status,
            answer=move.answer,
            is_well_formed=move.is_well_formed,
        )


def _turn(prompt_ids: tuple[int, ...], completion: Completion, text: str, image: ShownImage, view: View) -> Turn:
    return Turn(
        prompt_ids=prompt_ids,
        completion_ids=completion.token_ids,
        logprobs=completion.logprobs,
        version_spans=completion.version_spans,
        finish_reason=completion.finish_reason,
        text=text,
        view=view,
        num_visual_tokens=image.num_visual_tokens,
    )


def check_prompt(renderer: ChatRenderer, views: Views, question: str, rules: Rules) -> None:
    """Raise DataError if a first prompt, with the larger of the views, is longer than `rules.max_prompt_tokens`."""
    longest = max(view.num_visual_tokens for view in (views.full, views.quarter) if view is not None)
    num_tokens = len(renderer.first_turn(question, longest, offers_tool=rules.offers_tool))
    if num_tokens > rules.max_prompt_tokens:
        raise DataError(f"a prompt of {num_tokens} tokens exceeds rollout.max_prompt_tokens={rules.max_prompt_tokens}")


async def play_group(
    generate: Generate,
    renderer: ChatRenderer,
    views: Views,
    question: str,
    rules: Rules,
    episode_ids: tuple[EpisodeId, ...],
) -> tuple[Episode, ...]:
    """All episodes of one sample, concurrently. If one fails, the others are cancelled and the group fails.

    Raises:
        DataError: the first prompt is longer than `rules.max_prompt_tokens`.
        ExceptionGroup: what `generate` raised.
    """
    check_prompt(renderer, views, question, rules)
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(play_episode(generate, renderer, views, question, rules, episode_id))
            for episode_id in episode_ids
        ]
    return tuple(task.result() for task in tasks)
