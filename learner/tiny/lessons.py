"""Supervised episodes of the shapes task, rendered with the same prompts as in reinforcement learning.

Every row can be played in four forms: answered at once from the quarter view, answered after asking, and, without the
tool, answered from either view. For one question, answer and form the token ids are always the same; only the pixels
differ. So an episode is a cached transcript and its pictures.

Legend: B episodes, T tokens of a padded row, N predicted tokens, K decisions, M image placeholders, V views of one
size, H and W sides in pixels, P patches, D values of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.data.shapes import COLOURS, QUESTIONS, SHAPES, SIDE, WAYS, ShapesRow, paint
from actors.images import ViewSpec, quarter_view
from actors.prompts import TURN_END, ChatRenderer, PromptStyle
from actors.tools.registry import RESIZE_ALONE
from actors.tools.resize import RESIZE, RESIZE_CALL
from learner.batches.collate import mrope_positions
from learner.tiny.model import PATCH_SIZE
from learner.vision import Grid, patchify

Form = Literal["direct", "ask", "plain_quarter", "plain_full"]
FORMS: tuple[Form, ...] = get_args(Form)
SPEC = ViewSpec(patch_size=PATCH_SIZE, merge_size=2, min_pixels=SIDE * SIDE, max_pixels=SIDE * SIDE)
FULL_GRID: Grid = (1, SIDE // SPEC.patch_size, SIDE // SPEC.patch_size)
QUARTER_GRID: Grid = (1, SIDE // SPEC.patch_size // 2, SIDE // SPEC.patch_size // 2)
THOUGHTS = ("shape", "stripes", "flat")
"""Possible thoughts of a reply. Each is one token, and another one with the mark of doubt that leads to a tool call."""
DOUBT = "?"
QUARTER_TOKENS, FULL_TOKENS = 16, 64
"""Visual tokens of the two views."""
ANSWERS = (*COLOURS, *SHAPES, *WAYS)
ANSWER_WEIGHT = 5.0
"""The answer is one token among many format tokens, and the hard one to learn."""


def thought(row: ShapesRow, *, sees_full: bool) -> str:
    """What the view shows of the thing asked about: the shape, stripes, or a flat square where stripes have vanished.

    It says what is seen and not what to do: a flat square is followed by a guess as often as by a request.
    """
    if row.kind != "stripes":
        return "shape"
    return "flat" if row.needs_full and not sees_full else "stripes"


def reply_text(seen: str, answer: str | None) -> str:
    """A reply with this answer, or for None with the tool call."""
    if answer is None:
        return f"<think>{seen}{DOUBT}</think><tool_call>{RESIZE_CALL}</tool_call>"
    return f"<think>{seen}</think><answer>{answer}</answer>"


def tokenizer_corpus(style: PromptStyle) -> list[str]:
    """All text around the special tokens of any episode."""
    questions = [user.format(question=question) for question in QUESTIONS.values() for user in _user_texts(style)]
    headers = [style.system, style.system_without_tool, style.followup, "system\n", "user\n", "assistant\n", "\n"]
    return [
        text
        for text in (*questions, *headers, *THOUGHTS, *(seen + DOUBT for seen in THOUGHTS), RESIZE_CALL, *ANSWERS)
        if text
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """One row, played in one form."""

    row: ShapesRow
    form: Form


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """The token ids of an episode and its training targets."""

    token_ids: tuple[int, ...]
    targets: tuple[int, ...]
    """Indices of the tokens to predict with certainty; neither answer nor decision."""
    answer_at: int
    """Index of the answer token."""
    decision_at: int | None
    """Index of the tag that opens an answer or a request, where the tool is on offer."""
    choice: tuple[int, int]
    """Ids of the thought without and with doubt."""
    pads: tuple[tuple[int, int], ...]
    """(first index, number) of the placeholders of each view."""

    @cached_property
    def positions_3T(self) -> NDArray[np.int64]:
        """Rotary positions of the tokens."""
        spans = [(first, first + count) for first, count in self.pads]
        grids = [QUARTER_GRID if count == QUARTER_TOKENS else FULL_GRID for _, count in self.pads]
        return mrope_positions(len(self.token_ids), spans, grids, SPEC.merge_size)


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
    choice_K2: Tensor
    """Ids of the tokens that lead to an answer and to a tool call."""

    def to(self, device: torch.device) -> LessonBatch:
        return LessonBatch(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})

    def patches_PD(self, spec: ViewSpec) -> Tensor:
        """Of all views, in the order of `grids`; normalised as in `spec`."""
        return torch.cat([patchify(views, spec) for views in (self.quarters_VHW3, self.fulls_VHW3) if len(views)])

    @property
    def grids(self) -> tuple[Grid, ...]:
        return (QUARTER_GRID,) * len(self.quarters_VHW3) + (FULL_GRID,) * len(self.fulls_VHW3)


class LessonBook:
    """Turns rows into batches, for one tokenizer and one prompt template."""

    def __init__(self, tokenizer: Any, style: PromptStyle) -> None:
        self._tokenizer = tokenizer
        self._renderer = ChatRenderer(tokenizer, style)
        self._cache: dict[tuple[Form, str, str, bool], Transcript] = {}
        self.answer_ids = tuple(self._one_token(answer) for answer in ANSWERS)

    def transcript(self, lesson: Lesson) -> Transcript:
        key = (lesson.form, lesson.row.kind, lesson.row.answer, lesson.row.needs_full)
        if key not in self._cache:
            self._cache[key] = self._write(lesson.form, lesson.row)
        return self._cache[key]

    def batch(self, lessons: Sequence[Lesson]) -> LessonBatch:
        scripts = [self.transcript(lesson) for lesson in lessons]
        length = max(len(script.token_ids) for script in scripts)
        token_ids = np.zeros((len(lessons), length), np.int64)
        positions = np.zeros((3, len(lessons), length), np.int64)
        quarters, fulls = [], []
        pads: dict[int, list[NDArray[np.int64]]] = {QUARTER_TOKENS: [], FULL_TOKENS: []}
        certain, certain_episode, decisions, choices = [], [], [], []
        for b, (lesson, script) in enumerate(zip(lessons, scripts, strict=True)):
            token_ids[b, : len(script.token_ids)] = script.token_ids
            positions[:, b, : len(script.token_ids)] = script.positions_3T
            full = paint(lesson.row.scene)
            for first, count in script.pads:
                pads[count].append(b * length + first + np.arange(count))
                if count == QUARTER_TOKENS:
                    quarters.append(quarter_view(full))
                else:
                    fulls.append(full)
            certain.append(b * length + np.array(script.targets))
            certain_episode.append(np.full(len(script.targets), b))
            if script.decision_at is not None:
                decisions.append((b * length + script.decision_at, b))
                choices.append(script.choice)
        certain_at, flat = np.concatenate(certain), token_ids.reshape(-1)
        answer_at = np.array([b * length + script.answer_at for b, script in enumerate(scripts)])
        decision_at = np.array(decisions, np.int64).reshape(-1, 2)
        as_tensor = torch.from_numpy
        return LessonBatch(
            token_ids_BT=as_tensor(token_ids),
            positions_3BT=as_tensor(positions),
            quarters_VHW3=as_tensor(np.stack(quarters)) if quarters else torch.empty(0, SIDE // 2, SIDE // 2, 3),
            fulls_VHW3=as_tensor(np.stack(fulls)) if fulls else torch.empty(0, SIDE, SIDE, 3),
            placeholder_at_M=as_tensor(np.concatenate(pads[QUARTER_TOKENS] + pads[FULL_TOKENS])),
            certain_from_N=as_tensor(certain_at - 1),
            certain_ids_N=as_tensor(flat[certain_at]),
            certain_episode_N=as_tensor(np.concatenate(certain_episode)),
            answer_from_B=as_tensor(answer_at - 1),
            answer_ids_B=as_tensor(flat[answer_at]),
            decision_from_K=as_tensor(decision_at[:, 0] - 1),
            decision_episode_K=as_tensor(decision_at[:, 1].copy()),
            choice_K2=as_tensor(np.array(choices, np.int64).reshape(-1, 2)),
        )

    def _write(self, form: Form, row: ShapesRow) -> Transcript:
        offers_tool = form in ("direct", "ask")
        first_view = FULL_TOKENS if form == "plain_full" else QUARTER_TOKENS
        prompt = self._renderer.first_turn(row.question, first_view, RESIZE_ALONE if offers_tool else None)
        spoken = prompt
        targets: list[int] = []
        seen = thought(row, sees_full=form == "plain_full")
        if form == "ask":
            request = self._reply(seen, None)
            targets += range(len(spoken), len(spoken) + len(request))
            spoken = self._renderer.next_turn(prompt, request, FULL_TOKENS, RESIZE_ALONE, RESIZE.name)
        reply = self._reply(thought(row, sees_full=form in ("ask", "plain_full")), row.answer)
        targets += range(len(spoken), len(spoken) + len(reply))
        answer_at = len(spoken) + reply.index(self._one_token("<answer>")) + 1
        decision_at = len(prompt) + 1 if offers_tool else None
        token_ids = (*spoken, *reply)
        return Transcript(
            token_ids=token_ids,
            targets=tuple(index for index in targets if index not in (answer_at, decision_at)),
            answer_at=answer_at,
            decision_at=decision_at,
            choice=(self._one_token(seen), self._one_token(seen + DOUBT)),
            pads=_runs(token_ids, self._renderer.image_pad_id),
        )

    def _reply(self, seen: str, answer: str | None) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(reply_text(seen, answer) + TURN_END, add_special_tokens=False))

    def _one_token(self, word: str) -> int:
        ids = self._tokenizer.encode(word, add_special_tokens=False)
        assert len(ids) == 1, f"{word!r} is {len(ids)} tokens: the vocabulary is too small"
        return int(ids[0])


def _runs(token_ids: Sequence[int], pad_id: int) -> tuple[tuple[int, int], ...]:
    is_pad = np.concatenate([[0], np.asarray(token_ids) == pad_id, [0]]).astype(np.int8)
    starts, stops = np.flatnonzero(np.diff(is_pad) == 1), np.flatnonzero(np.diff(is_pad) == -1)
    return tuple((int(start), int(stop - start)) for start, stop in zip(starts, stops, strict=True))


def _user_texts(style: PromptStyle) -> tuple[str, str]:
    return style.user, style.user_without_tool
