"""Generates episodes with anything that implements `Generate`: the engine in a run, a script in tests.

Every episode is a separate coroutine. Each of its turns starts as soon as the one before ends: there are no barriers
between the episodes of a group, between groups, or between workers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from PIL import Image

from actors.episode import (
    Episode,
    EpisodeId,
    Finish,
    FinishReason,
    Progress,
    Refuse,
    SampleRef,
    Status,
    Turn,
    VersionSpan,
    fault_of,
    next_move,
)
from actors.errors import DataError
from actors.images import View_HW3, ViewSpec, can_quarter
from actors.prompts import ChatRenderer
from actors.replies import parse_reply
from actors.tools.registry import Toolbox, toolbox_of
from actors.tools.tool import Scene
from actors.views import Crop, Size, View, cut_view, tokens_of
from configs.schema import RolloutConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownImage:
    """One image as the engine receives it."""

    picture: Image.Image
    """RGB. Created once per view and shared by all turns that show it: read-only."""
    key: str
    """Identifies the content: equal keys mean equal pixels. Engines use it as cache key."""
    num_visual_tokens: int
    view: View


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


OnTurn = Callable[[ShownImage | None, str | None, str | None], None]
"""Is told before each turn of the picture that its prompt adds, of the tool that was called for it, and of why a call
was refused."""


class Generate(Protocol):
    """Samples one completion. Prompt ids hold one placeholder per visual token of `images`, in order."""

    async def __call__(
        self, prompt_ids: tuple[int, ...], images: tuple[ShownImage, ...], sampling: Sampling
    ) -> Completion: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Views:
    """The views of one sample, made by `make_views`."""

    full: ShownImage
    quarter: ShownImage | None
    """None where the image is too small to quarter."""
    pixels_HW3: View_HW3 = field(repr=False)
    """Of the full view: what crops are cut from."""
    spec: ViewSpec
    image_sha256: str

    @property
    def full_size(self) -> Size:
        """(height, width) in pixels of the full view."""
        return (self.pixels_HW3.shape[0], self.pixels_HW3.shape[1])

    def show(self, view: View) -> ShownImage:
        """A view as the engine receives it."""
        if isinstance(view, Crop):
            return _shown(self.pixels_HW3, view, self.spec, self.image_sha256)
        chosen = self.quarter if view == "quarter" else self.full
        assert chosen is not None, "an image too small to quarter has no quarter view"
        return chosen


def make_views(full_HW3: View_HW3, spec: ViewSpec, image_sha256: str) -> Views:
    """The views made from a full view uint8 [H, W, 3]."""
    height, width = full_HW3.shape[:2]
    quarter = _shown(full_HW3, "quarter", spec, image_sha256) if can_quarter(height, width, spec) else None
    return Views(
        full=_shown(full_HW3, "full", spec, image_sha256),
        quarter=quarter,
        pixels_HW3=full_HW3,
        spec=spec,
        image_sha256=image_sha256,
    )


def _shown(full_HW3: View_HW3, view: View, spec: ViewSpec, image_sha256: str) -> ShownImage:
    """A view with its key. A size is part of the key: equal bytes can differ in shape, and a crop in what it is of."""
    pixels = cut_view(full_HW3, view)
    full_size = (full_HW3.shape[0], full_HW3.shape[1])
    height, width = full_size if isinstance(view, Crop) else pixels.shape[:2]
    return ShownImage(
        picture=Image.fromarray(pixels),
        key=f"{image_sha256}:{view}:{height}x{width}",
        num_visual_tokens=tokens_of(view, full_size, spec.token_side),
        view=view,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How an episode is played."""

    first_view: Literal["quarter", "full"]
    """`quarter` unless the image is too small for it."""
    toolbox: Toolbox | None
    """The tools on offer, provided the first view is the quarter view; None for none."""
    sampling: Sampling
    max_prompt_tokens: int


Kind = Literal["policy", "always_full", "always_quarter"]
"""`policy`: as trained by the config. The other two are the baselines: one view, one turn, no tool."""


def rules_for(kind: Kind, config: RolloutConfig, *, greedy: bool) -> Rules:
    """The rules for episodes of one kind."""
    efficient = config.mode == "efficient"
    return Rules(
        first_view="quarter" if kind == "always_quarter" or (kind == "policy" and efficient) else "full",
        toolbox=toolbox_of(config.tools) if kind == "policy" and efficient else None,
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
    generate: Generate,
    renderer: ChatRenderer,
    views: Views,
    question: str,
    rules: Rules,
    episode_id: EpisodeId,
    on_turn: OnTurn = lambda added, tool, refusal: None,
) -> Episode:
    """Turns until the policy answers or may not go on; each tool call leads to a turn that shows a view."""
    first = (views.quarter if rules.first_view == "quarter" else None) or views.full
    toolbox = rules.toolbox if first.view == "quarter" else None
    scene = Scene(full_size=views.full_size, token_side=views.spec.token_side, shown=(first.view,))
    progress = Progress(toolbox=toolbox, scene=scene)
    images: tuple[ShownImage, ...] = (first,)
    added: ShownImage | None = first
    tool: str | None = None
    refusal: str | None = None
    prompt_ids = renderer.first_turn(question, first.num_visual_tokens, toolbox)
    turns: list[Turn] = []
    while True:
        on_turn(added, tool, refusal)
        completion = await generate(prompt_ids, images, rules.sampling)
        text = renderer.reply_text(completion.token_ids)
        move = next_move(parse_reply(text, toolbox), completion.finish_reason, progress)
        turns.append(_turn(prompt_ids, completion, text, added, tool, fault_of(move)))
        if not isinstance(move, Finish):
            assert toolbox is not None, "without tools there is one turn"
            progress = progress.after(move)
            spoken = (prompt_ids, completion.token_ids)
            if isinstance(move, Refuse):
                added, tool, refusal = None, None, move.reason
                prompt_ids = renderer.refused_turn(*spoken, toolbox, move.reason)
            else:
                shown = views.show(move.view)
                images, added, tool, refusal = (*images, shown), shown, move.tool, None
                prompt_ids = renderer.next_turn(*spoken, shown.num_visual_tokens, toolbox, move.tool)
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


def _turn(
    prompt_ids: tuple[int, ...],
    completion: Completion,
    text: str,
    added: ShownImage | None,
    tool: str | None,
    fault: str | None,
) -> Turn:
    return Turn(
        prompt_ids=prompt_ids,
        completion_ids=completion.token_ids,
        logprobs=completion.logprobs,
        version_spans=completion.version_spans,
        finish_reason=completion.finish_reason,
        text=text,
        view=None if added is None else added.view,
        num_visual_tokens=0 if added is None else added.num_visual_tokens,
        tool=tool,
        fault=fault,
    )


def check_prompt(renderer: ChatRenderer, views: Views, question: str, rules: Rules) -> None:
    """Raise DataError if a first prompt, with the larger of the views, is longer than `rules.max_prompt_tokens`."""
    longest = max(view.num_visual_tokens for view in (views.full, views.quarter) if view is not None)
    num_tokens = len(renderer.first_turn(question, longest, rules.toolbox))
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
