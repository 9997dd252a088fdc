"""The warm start: the tiny model learns the shapes task and the reply format, from scratch.

Reinforcement learning needs a policy that can read both views, but has not yet learned when to call the tool. So the
tool call is trained to probability 0.5 independent of the image, and the rest by plain supervised learning. There is a
separate doubt token per kind of content: with a single one, policy gradients would drive all images to never calling
the tool before they are told apart (figures in configs/tiny/README.md).

Stages matter: with everything mixed from the start, stripes are not learned in 1,500 steps.

Legend: see `learner/tiny/lessons.py`; Y vocabulary, W width of the language model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actors.data.shapes import COARSE, FINE, Kind, ShapesRow, draw_scene
from actors.prompts import load_prompt_style
from learner.families.architectures import architecture_of, encode_views
from learner.families.lookup import FAMILIES
from learner.model import hidden_states
from learner.tiny.lessons import ANSWER_WEIGHT, SPEC, Form, Lesson, LessonBatch, LessonBook, tokenizer_corpus
from learner.tiny.model import build_model, build_tokenizer, save_tiny


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Training data during one stage of the warm start."""

    until: float
    """Fraction of all steps at which the stage ends."""
    kinds: tuple[Kind, ...]
    """Sampled uniformly; a kind listed twice is sampled twice as often."""
    stripe_widths: tuple[int, ...]
    forms: tuple[Form, ...]
    """Each row appears in all of them, so that tool calls and answers are exactly balanced."""


CURRICULUM = (
    Stage(until=0.08, kinds=("stripes",), stripe_widths=(COARSE,), forms=("direct", "plain_quarter")),
    Stage(until=0.16, kinds=("stripes",), stripe_widths=(FINE, FINE, COARSE), forms=("ask", "plain_full")),
    Stage(
        until=1.0,
        kinds=("colour", "shape", "stripes", "stripes"),
        stripe_widths=(FINE, COARSE),
        forms=("direct", "ask", "plain_quarter", "plain_full"),
    ),
)


def stage_at(step: int, num_steps: int) -> Stage:
    return next(stage for stage in CURRICULUM if step < stage.until * num_steps or stage is CURRICULUM[-1])


def learning_rate_at(step: int, num_steps: int, peak: float) -> float:
    """Linear warm-up over 2 % of the steps, constant in the first stages, then cosine decay to 2 % of the peak."""
    rise = min(1.0, (step + 1) / max(1.0, 0.02 * num_steps))
    level = CURRICULUM[-2].until * num_steps
    fall = max(0.0, (step - level) / max(1.0, num_steps - level))
    return peak * rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * fall)))


def draw_lessons(rng: np.random.Generator, stage: Stage, num_rows: int) -> list[Lesson]:
    """Rows of the training split, each in every form of the stage."""
    lessons = []
    for _ in range(num_rows):
        kind = stage.kinds[int(rng.integers(len(stage.kinds)))]
        width = stage.stripe_widths[int(rng.integers(len(stage.stripe_widths)))]
        row = ShapesRow(scene=draw_scene(rng, "train", stripe_width=width), kind=kind)
        lessons += [Lesson(row=row, form=form) for form in stage.forms]
    return lessons


def lesson_states(model: Any, batch: LessonBatch) -> Tensor:
    """Hidden states [B * T, W] of a batch."""
    family = FAMILIES[model.config.model_type]
    spec = replace(SPEC, mean=family.image_mean, std=family.image_std)
    features = encode_views(model, batch.patches_PD(spec), batch.grids)
    return hidden_states(model, batch.token_ids_BT, batch.positions_3BT, batch.placeholder_at_M, features)


def lesson_loss(model: nn.Module, batch: LessonBatch) -> Tensor:
    """Weighted cross-entropy per token. The target of a decision is 0.5 for each of its two tokens."""
    hidden = lesson_states(model, batch)
    head: Any = model.lm_head
    certain = F.cross_entropy(head(hidden[batch.certain_from_N]), batch.certain_ids_N, reduction="sum")
    answers = F.cross_entropy(head(hidden[batch.answer_from_B]), batch.answer_ids_B, reduction="sum")
    decided_KY = F.log_softmax(head(hidden[batch.decision_from_K]), dim=-1)
    decisions = -0.5 * decided_KY.gather(1, batch.choice_K2).sum()
    num_plain = len(batch.certain_from_N) + len(batch.decision_from_K)
    total: Tensor = (certain + decisions + ANSWER_WEIGHT * answers) / (
        num_plain + ANSWER_WEIGHT * len(batch.token_ids_BT)
    )
    return total


class _Drawer(torch.utils.data.Dataset[LessonBatch]):
    """Batch number i, independent of the number of processes."""

    def __init__(self, book: LessonBook, *, seed: int, num_steps: int, batch_size: int) -> None:
        self.book, self.seed, self.num_steps, self.batch_size = book, seed, num_steps, batch_size

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> LessonBatch:
        if step >= self.num_steps:
            raise IndexError(step)
        stage = stage_at(step, self.num_steps)
        rng = np.random.default_rng([self.seed, 2, step])
        return self.book.batch(draw_lessons(rng, stage, max(1, self.batch_size // len(stage.forms))))


def warm_start(
    output: Path,
    *,
    family: str = "qwen2_5_vl",
    seed: int = 0,
    steps: int = 2500,
    batch_size: int = 128,
    learning_rate: float = 1.5e-3,
    device: str = "cpu",
    num_workers: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> None:
    """Train the tiny model from scratch and save it into `output`, ready for vLLM and transformers.

    `family` is its model_type. `progress` is called with the step and its loss. Pictures are drawn by `num_workers`
    processes, or in this one.
    """
    style = load_prompt_style("tiny")
    tokenizer = build_tokenizer(tokenizer_corpus(style))
    book = LessonBook(tokenizer, style)
    model = build_model(tokenizer, FAMILIES[family], seed=seed)
    architecture_of(model).install()
    nn.Module.to(model, device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    drawer = _Drawer(book, seed=seed, num_steps=steps, batch_size=batch_size)
    batches = torch.utils.data.DataLoader(drawer, batch_size=None, num_workers=num_workers)
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, steps, learning_rate)
        loss = lesson_loss(model, batch.to(torch.device(device)))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if progress is not None and (step % 50 == 0 or step == steps - 1):
            progress(step, loss.item())
    nn.Module.to(model, "cpu").eval()
    save_tiny(output, model, tokenizer, FAMILIES[family])
