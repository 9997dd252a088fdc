"""Supervised episodes for a warm start, rendered with the same prompts as in reinforcement learning.

A lesson is an episode whose replies are given. A task (`learner.tiny.shapes`, `learner.tiny.crop`) makes lessons
from its rows: each row in several forms, such as answered at once from the quarter view, or answered after a tool call.
For equal texts the token ids are always the same; only the pixels differ. So an episode is a cached transcript and its
pictures, and a picture that several lessons show is encoded once.

Legend: B episodes, T tokens of a padded row, N predicted tokens, K decisions, C choices of a decision, M image
placeholders, V views of one size, S visual tokens of all views, H and W sides in pixels, P patches, D values of a
patch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.data.shapes import SIDE, Picture
from actors.images import ViewSpec, num_visual_tokens
from actors.prompts import TURN_END, ChatRenderer, PromptStyle
from actors.tools.registry import Toolbox
from actors.views import Size, View, cut_view, shown_size
from learner.batches.collate import mrope_positions
from learner.tiny.model import PATCH_SIZE
from learner.vision import Grid, patchify

SPEC = ViewSpec(patch_size=PATCH_SIZE, merge_size=2, min_pixels=SIDE * SIDE, max_pixels=SIDE * SIDE)


def answer_reply(seen: str, answer: str) -> str:
    return f"<think>{seen}</think><answer>{answer}</answer>"


def call_reply(seen: str, call: str) -> str:
    return f"<think>{seen}</think><tool_call>{call}</tool_call>"


@dataclass(frozen=True, slots=True, kw_only=True)
class LaterTurn:
    """A turn after a tool call."""

    tool: str
    view: View
    """What the tool shows."""
    reply: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """One row, played in one form."""

    form: str
    kind: str
    """What the row asks; with `form` the label under which it is evaluated."""
    picture: Picture = field(compare=False)
    """The full view, uint8 [H, W, 3]."""
    question: str
    toolbox: Toolbox | None = field(compare=False)
    """The tools on offer; None for none."""
    first_view: View
    reply: str
    """To the first view; the last reply holds the answer."""
    later: tuple[LaterTurn, ...] = ()
    choices: tuple[str, ...] = ()
    """First words of the first reply's thought, one of them the reply's: each is to become equally likely, and is
    followed by an answer, or by a call of one tool. Empty where there is nothing to choose."""


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """The token ids of an episode and its training targets."""

    token_ids: tuple[int, ...]
    targets: tuple[int, ...]
    """Indices of the tokens to predict with certainty; neither answer nor decision."""
    answer_at: int
    """Index of the answer token."""
    decision_at: int | None
    """Index of the thought, where there is a choice."""
    choices: tuple[int, ...]
    """Ids of the thoughts to choose from."""
    pads: tuple[tuple[int, int], ...]
    """(first index, number) of the placeholders of each view."""
    grids: tuple[Grid, ...]

    @cached_property
    def positions_3T(self) -> NDArray[np.int64]:
        """Rotary positions of the tokens."""
        spans = [(first, first + count) for first, count in self.pads]
        return mrope_positions(len(self.token_ids), spans, self.grids, SPEC.merge_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class LessonBatch:
    """Tensors of B episodes."""

    token_ids_BT: Tensor
    positions_3BT: Tensor
    blocks: tuple[tuple[int, int, int], ...]
    """(first row, last row + 1, tokens of the longest of them): neighbours of about the same length, of which the model
    need not see more padding."""
    views: tuple[Tensor, ...]
    """The different views, uint8 [V, H, W, 3], one tensor per size, smaller ones first."""
    placeholder_at_M: Tensor
    """Flat index into [B * T]."""
    feature_of_M: Tensor
    """Index into [S], the visual tokens of `views`, one after the other."""
    certain_from_N: Tensor
    """Flat index of the position that predicts each certain token."""
    certain_ids_N: Tensor
    certain_episode_N: Tensor
    answer_from_B: Tensor
    answer_ids_B: Tensor
    decision_from_K: Tensor
    decision_episode_K: Tensor
    choice_KC: Tensor
    """Ids of the thoughts to choose from: first the one that leads to an answer, then those that lead to calls."""

    def to(self, device: torch.device) -> LessonBatch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("views", "blocks")}
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        views = tuple(view.to(device, non_blocking=True) for view in self.views)
        return LessonBatch(views=views, blocks=self.blocks, **moved)

    def patches_PD(self, spec: ViewSpec) -> Tensor:
        """Of all views, in the order of `grids`; normalised as in `spec`."""
        return torch.cat([patchify(views, spec) for views in self.views])

    @property
    def grids(self) -> tuple[Grid, ...]:
        return tuple(_grid((views.shape[1], views.shape[2])) for views in self.views for _ in views)


class LessonBook:
    """Turns lessons into batches, for one tokenizer and one prompt template."""

    def __init__(self, tokenizer: Any, style: PromptStyle, answers: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._renderer = ChatRenderer(tokenizer, style)
        self._cache: dict[object, Transcript] = {}
        self.answer_ids = tuple(self._one_token(answer) for answer in answers)

    def transcript(self, lesson: Lesson) -> Transcript:
        sizes = tuple(shown_size(view, _full_size(lesson)) for view in _views(lesson))
        replies = (lesson.reply, *((turn.tool, turn.reply) for turn in lesson.later))
        tools = lesson.toolbox and tuple(tool.name for tool in lesson.toolbox.tools)
        key = (lesson.question, tools, sizes, replies, lesson.choices)
        if key not in self._cache:
            self._cache[key] = self._write(lesson, sizes)
        return self._cache[key]

    def batch(self, lessons: Sequence[Lesson]) -> LessonBatch:
        scripts = [self.transcript(lesson) for lesson in lessons]
        length = max(len(script.token_ids) for script in scripts)
        token_ids = np.zeros((len(lessons), length), np.int64)
        positions = np.zeros((3, len(lessons), length), np.int64)
        pictures = _Pictures()
        placeholders, certain, certain_episode, decisions, choices = [], [], [], [], []
        for b, (lesson, script) in enumerate(zip(lessons, scripts, strict=True)):
            token_ids[b, : len(script.token_ids)] = script.token_ids
            positions[:, b, : len(script.token_ids)] = script.positions_3T
            for view, (first, count) in zip(_views(lesson), script.pads, strict=True):
                pictures.show(lesson.picture, view)
                placeholders.append(b * length + first + np.arange(count))
            certain.append(b * length + np.array(script.targets))
            certain_episode.append(np.full(len(script.targets), b))
            if script.decision_at is not None:
                decisions.append((b * length + script.decision_at, b))
                choices.append(script.choices)
        certain_at, flat = np.concatenate(certain), token_ids.reshape(-1)
        answer_at = np.array([b * length + script.answer_at for b, script in enumerate(scripts)])
        decision_at = np.array(decisions, np.int64).reshape(-1, 2)
        as_tensor = torch.from_numpy
        return LessonBatch(
            token_ids_BT=as_tensor(token_ids),
            positions_3BT=as_tensor(positions),
            blocks=_blocks([len(script.token_ids) for script in scripts]),
            views=pictures.stacked(),
            placeholder_at_M=as_tensor(np.concatenate(placeholders)),
            feature_of_M=as_tensor(pictures.features()),
            certain_from_N=as_tensor(certain_at - 1),
            certain_ids_N=as_tensor(flat[certain_at]),
            certain_episode_N=as_tensor(np.concatenate(certain_episode)),
            answer_from_B=as_tensor(answer_at - 1),
            answer_ids_B=as_tensor(flat[answer_at]),
            decision_from_K=as_tensor(decision_at[:, 0] - 1),
            decision_episode_K=as_tensor(decision_at[:, 1].copy()),
            choice_KC=as_tensor(np.array(choices, np.int64).reshape(len(choices), len(choices[0]) if choices else 0)),
        )

    def _write(self, lesson: Lesson, sizes: Sequence[Size]) -> Transcript:
        counts = [num_visual_tokens(*size, SPEC) for size in sizes]
        spoken = self._renderer.first_turn(lesson.question, counts[0], lesson.toolbox)
        decision_at = len(spoken) + 1 if lesson.choices else None
        targets: list[int] = []
        reply = self._reply(lesson.reply)
        for turn, count in zip(lesson.later, counts[1:], strict=True):
            targets += range(len(spoken), len(spoken) + len(reply))
            assert lesson.toolbox is not None, "a later turn follows a tool call"
            spoken = self._renderer.next_turn(spoken, reply, count, lesson.toolbox, turn.tool)
            reply = self._reply(turn.reply)
        targets += range(len(spoken), len(spoken) + len(reply))
        answer_at = len(spoken) + reply.index(self._one_token("<answer>")) + 1
        token_ids = (*spoken, *reply)
        return Transcript(
            token_ids=token_ids,
            targets=tuple(index for index in targets if index not in (answer_at, decision_at)),
            answer_at=answer_at,
            decision_at=decision_at,
            choices=tuple(self._one_token(choice) for choice in lesson.choices),
            pads=_runs(token_ids, self._renderer.image_pad_id),
            grids=tuple(_grid(size) for size in sizes),
        )

    def _reply(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text + TURN_END, add_special_tokens=False))

    def _one_token(self, word: str) -> int:
        ids = self._tokenizer.encode(word, add_special_tokens=False)
        assert len(ids) == 1, f"{word!r} is {len(ids)} tokens: the vocabulary is too small"
        return int(ids[0])


class _Pictures:
    """The different views of a batch, and which of them is shown where."""

    def __init__(self) -> None:
        self._number: dict[tuple[int, View], tuple[Size, int]] = {}
        self._cut: dict[Size, list[Picture]] = defaultdict(list)
        self._shown: list[tuple[Size, int]] = []

    def show(self, picture: Picture, view: View) -> None:
        """Views of one array are the same picture; the caller keeps it alive."""
        key = (id(picture), view)
        if key not in self._number:
            pixels = cut_view(picture, view)
            size = (pixels.shape[0], pixels.shape[1])
            self._number[key] = (size, len(self._cut[size]))
            self._cut[size].append(pixels)
        self._shown.append(self._number[key])

    def stacked(self) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(np.stack(self._cut[size])) for size in sorted(self._cut))

    def features(self) -> NDArray[np.int64]:
        """[M] for each placeholder, in the order of what was shown, its visual token among those of `stacked`."""
        first, start = {}, 0
        for size in sorted(self._cut):
            first[size] = start
            start += len(self._cut[size]) * num_visual_tokens(*size, SPEC)
        runs = []
        for size, number in self._shown:
            count = num_visual_tokens(*size, SPEC)
            runs.append(first[size] + number * count + np.arange(count))
        return np.concatenate(runs)


def _blocks(lengths: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """Runs of rows, none of them more than a quarter shorter than the longest."""
    blocks: list[list[int]] = []
    for length in lengths:
        if blocks and 4 * min(*blocks[-1], length) >= 3 * max(*blocks[-1], length):
            blocks[-1].append(length)
        else:
            blocks.append([length])
    stops = np.cumsum([len(block) for block in blocks]).tolist()
    return tuple((stop - len(block), stop, max(block)) for block, stop in zip(blocks, stops, strict=True))


def _views(lesson: Lesson) -> tuple[View, ...]:
    return (lesson.first_view, *(turn.view for turn in lesson.later))


def _full_size(lesson: Lesson) -> Size:
    return lesson.picture.shape[0], lesson.picture.shape[1]


def _grid(size: Size) -> Grid:
    return (1, size[0] // SPEC.patch_size, size[1] // SPEC.patch_size)


def _runs(token_ids: Sequence[int], pad_id: int) -> tuple[tuple[int, int], ...]:
    is_pad = np.concatenate([[0], np.asarray(token_ids) == pad_id, [0]]).astype(np.int8)
    starts, stops = np.flatnonzero(np.diff(is_pad) == 1), np.flatnonzero(np.diff(is_pad) == -1)
    return tuple((int(start), int(stop - start)) for start, stop in zip(starts, stops, strict=True))
