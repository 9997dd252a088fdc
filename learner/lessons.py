"""Supervised episodes of the shapes task, rendered with the very prompts of reinforcement learning.

Every row can be played in four forms: answered at once from the quarter view, answered after asking, and, without the
tool, answered from either view. For one question, answer and form the token ids are always the same; only the pixels
differ. So an episode is a cached transcript and its pictures.

Legend: B episodes, T tokens of a padded row, N predicted tokens, K decisions, M image placeholders, V views of one
size, H and W sides in pixels, P patches, D values of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from actors.images import quarter_view
from actors.prompts import TOOL_CALL, TURN_END, ChatRenderer, PromptStyle
from actors.shapes import COLOURS, QUESTIONS, SHAPES, SIDE, WAYS, ShapesRow, paint
from learner.vision import CLIP_MEAN, CLIP_STD, Grid

Form = Literal["direct", "ask", "plain_quarter", "plain_full"]
FORMS: tuple[Form, ...] = get_args(Form)
PATCH, MERGE, FRAMES = 14, 2, 2
FULL_GRID: Grid = (1, SIDE // PATCH, SIDE // PATCH)
QUARTER_GRID: Grid = (1, SIDE // PATCH // 2, SIDE // PATCH // 2)
CLEAR, UNCLEAR = "clear", "unclear"
"""The thought that leads to an answer, and the one that leads to a request: one token each."""
ANSWERS = (*COLOURS, *SHAPES, *WAYS)
ANSWER_WEIGHT = 5.0
"""One answer stands among many tokens of form, and is what is hard to learn."""


def reply_text(answer: str | None) -> str:
    """An answering reply, or for None the one that asks for the full view."""
    if answer is None:
        return f"<think>{UNCLEAR}</think><tool_call>{TOOL_CALL}</tool_call>"
    return f"<think>{CLEAR}</think><answer>{answer}</answer>"


def tokenizer_corpus(style: PromptStyle) -> list[str]:
    """All text around the special tokens of any episode."""
    questions = [user.format(question=question) for question in QUESTIONS.values() for user in _user_texts(style)]
    headers = [style.system, style.system_without_tool, style.followup, "system\n", "user\n", "assistant\n", "\n"]
    return [text for text in (*questions, *headers, CLEAR, UNCLEAR, TOOL_CALL, *ANSWERS) if text]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """One row, played in one form."""

    row: ShapesRow
    form: Form


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """The token ids of an episode and what is to be learned of them."""

    token_ids: tuple[int, ...]
    targets: tuple[int, ...]
    """Indices of the tokens to predict with certainty; neither answer nor decision."""
    answer_at: int
    """Index of the one answer token."""
    decision_at: int | None
    """Index of the thought that chooses between answering and asking, where the tool is on offer."""
    pads: tuple[tuple[int, int], ...]
    """(first index, number) of the placeholders of each view."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LessonBatch:
    """Tensors of B episodes. All quarter views come before all full ones."""

    token_ids_BT: Tensor
    positions_3BT: Tensor
    quarters_VHW3: Tensor
    fulls_VHW3: Tensor
    placeholder_at_M: Tensor
    """Flat index into [B * T], in the order of the views."""
    certain_from_N: Tensor
    """Flat index of the position that predicts each certain token."""
    certain_ids_N: Tensor
    certain_episode_N: Tensor
    answer_from_B: Tensor
    answer_ids_B: Tensor
    decision_from_K: Tensor
    decision_episode_K: Tensor

    def to(self, device: torch.device) -> LessonBatch:
        return LessonBatch(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})

    @property
    def grids(self) -> tuple[Grid, ...]:
        return (QUARTER_GRID,) * len(self.quarters_VHW3) + (FULL_GRID,) * len(self.fulls_VHW3)


class LessonBook:
    """Turns rows into batches, for one tokenizer and one wording."""

    def __init__(self, tokenizer: Any, style: PromptStyle) -> None:
        self._tokenizer = tokenizer
        self._renderer = ChatRenderer(tokenizer, style)
        self._cache: dict[tuple[Form, str, str], Transcript] = {}
        self.clear_id, self.unclear_id = self._one_token(CLEAR), self._one_token(UNCLEAR)
        self.answer_ids = tuple(self._one_token(answer) for answer in ANSWERS)

    def transcript(self, lesson: Lesson) -> Transcript:
        key = (lesson.form, lesson.row.question, lesson.row.answer)
        if key not in self._cache:
            self._cache[key] = self._write(*key)
        return self._cache[key]

    def batch(self, lessons: Sequence[Lesson]) -> LessonBatch:
        scripts = [self.transcript(lesson) for lesson in lessons]
        length = max(len(script.token_ids) for script in scripts)
        token_ids = np.zeros((len(lessons), length), np.int64)
        positions = np.zeros((3, len(lessons), length), np.int64)
        quarters, fulls = [], []
        pads: dict[int, list[np.ndarray[Any, Any]]] = {16: [], 64: []}
        certain, certain_episode, decisions = [], [], []
        for b, (lesson, script) in enumerate(zip(lessons, scripts, strict=True)):
            token_ids[b, : len(script.token_ids)] = script.token_ids
            positions[:, b, : len(script.token_ids)] = _positions(len(script.token_ids), script.pads)
            full = paint(lesson.row.scene)
            for first, count in script.pads:
                pads[count].append(b * length + first + np.arange(count))
                if count == 16:
                    quarters.append(quarter_view(full))
                else:
                    fulls.append(full)
            certain.append(b * length + np.array(script.targets))
            certain_episode.append(np.full(len(script.targets), b))
            if script.decision_at is not None:
                decisions.append((b * length + script.decision_at, b))
        certain_at, flat = np.concatenate(certain), token_ids.reshape(-1)
        answer_at = np.array([b * length + script.answer_at for b, script in enumerate(scripts)])
        decision_at = np.array(decisions, np.int64).reshape(-1, 2)
        as_tensor = torch.from_numpy
        return LessonBatch(
            token_ids_BT=as_tensor(token_ids),
            positions_3BT=as_tensor(positions),
            quarters_VHW3=as_tensor(np.stack(quarters)) if quarters else torch.empty(0, SIDE // 2, SIDE // 2, 3),
            fulls_VHW3=as_tensor(np.stack(fulls)) if fulls else torch.empty(0, SIDE, SIDE, 3),
            placeholder_at_M=as_tensor(np.concatenate(pads[16] + pads[64])),
            certain_from_N=as_tensor(certain_at - 1),
            certain_ids_N=as_tensor(flat[certain_at]),
            certain_episode_N=as_tensor(np.concatenate(certain_episode)),
            answer_from_B=as_tensor(answer_at - 1),
            answer_ids_B=as_tensor(flat[answer_at]),
            decision_from_K=as_tensor(decision_at[:, 0] - 1),
            decision_episode_K=as_tensor(decision_at[:, 1].copy()),
        )

    def _write(self, form: Form, question: str, answer: str) -> Transcript:
        offers_tool = form in ("direct", "ask")
        prompt = self._renderer.first_turn(question, 64 if form == "plain_full" else 16, offers_tool=offers_tool)
        spoken, targets = prompt, []
        if form == "ask":
            request = self._reply(None)
            targets += range(len(spoken), len(spoken) + len(request))
            spoken = self._renderer.second_turn(prompt, request, 64)
        reply = self._reply(answer)
        targets += range(len(spoken), len(spoken) + len(reply))
        answer_at = len(spoken) + reply.index(self._one_token(answer))
        decision_at = len(prompt) + 1 if offers_tool else None
        token_ids = (*spoken, *reply)
        return Transcript(
            token_ids=token_ids,
            targets=tuple(index for index in targets if index not in (answer_at, decision_at)),
            answer_at=answer_at,
            decision_at=decision_at,
            pads=_runs(token_ids, self._renderer.image_pad_id),
        )

    def _reply(self, answer: str | None) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(reply_text(answer) + TURN_END, add_special_tokens=False))

    def _one_token(self, word: str) -> int:
        ids = self._tokenizer.encode(word, add_special_tokens=False)
        assert len(ids) == 1, f"{word!r} is {len(ids)} tokens: the vocabulary is too small"
        return int(ids[0])


def patches_of(views_VHW3: Tensor) -> Tensor:
    """Normalised patches [P, D] of views of one size, as `learner.vision.patchify` makes them, on the views' device."""
    views, height, width, channels = views_VHW3.shape
    device = views_VHW3.device
    levels = torch.arange(256, dtype=torch.float32)[:, None] / 255
    table = ((levels - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)).to(device)
    side = PATCH * MERGE
    blocks = views_VHW3.reshape(views, height // side, MERGE, PATCH, width // side, MERGE, PATCH, channels)
    ordered = blocks.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(-1, channels, PATCH * PATCH).long()
    values = table[ordered, torch.arange(channels, device=device)[None, :, None]]
    return values[:, :, None, :].expand(-1, -1, FRAMES, -1).reshape(len(values), -1)


@lru_cache(maxsize=64)
def _positions(length: int, pads: tuple[tuple[int, int], ...]) -> np.ndarray[Any, Any]:
    """[3, length] temporal, row and column positions: a view advances the text after it by its side in tokens."""
    positions = np.empty((3, length), np.int64)
    at, position = 0, 0
    for first, count in (*pads, (length, 0)):
        positions[:, at:first] = position + np.arange(first - at)
        position += first - at
        side = int(count**0.5)
        row, column = np.divmod(np.arange(count), max(side, 1))
        positions[:, first : first + count] = position + np.stack([np.zeros_like(row), row, column])
        at, position = first + count, position + side
    return positions


def _runs(token_ids: Sequence[int], pad_id: int) -> tuple[tuple[int, int], ...]:
    is_pad = np.concatenate([[0], np.asarray(token_ids) == pad_id, [0]]).astype(np.int8)
    starts, stops = np.flatnonzero(np.diff(is_pad) == 1), np.flatnonzero(np.diff(is_pad) == -1)
    return tuple((int(start), int(stop - start)) for start, stop in zip(starts, stops, strict=True))


def _user_texts(style: PromptStyle) -> tuple[str, str]:
    return style.user, style.user_without_tool
