"""The warm start: the tiny model learns a task and the reply format by supervised learning.

Reinforcement learning needs a policy that can read all views, but has not yet learned when to call which tool. So each
choice is trained to equal probabilities independent of the image, and the rest by plain supervised learning. There is a
separate token per kind of content and choice: with a single one, policy gradients would drive all images to never
calling the tool before they are told apart (figures in configs/tiny/README.md).

Legend: see `learner/tiny/lessons.py`; Y vocabulary, W width of the language model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actors.prompts import load_prompt_style, load_tokenizer
from learner.families.architectures import architecture_of, encode_views
from learner.families.lookup import FAMILIES, family_of_folder
from learner.model import hidden_states, load_policy
from learner.tiny.lessons import SPEC, Lesson, LessonBatch, LessonBook
from learner.tiny.model import build_model, build_tokenizer, save_tiny
from learner.tiny.task import Stage, Task, tokenizer_corpus


def stage_at(stages: Sequence[Stage], step: int, num_steps: int) -> Stage:
    return next(stage for stage in stages if step < stage.until * num_steps or stage is stages[-1])


def learning_rate_at(stages: Sequence[Stage], step: int, num_steps: int, peak: float) -> float:
    """Linear warm-up over 2 % of the steps, constant in all stages but the last, then cosine decay to 2 % of the
    peak."""
    rise = min(1.0, (step + 1) / max(1.0, 0.02 * num_steps))
    level = (stages[-2].until if len(stages) > 1 else 0.0) * num_steps
    fall = max(0.0, (step - level) / max(1.0, num_steps - level))
    return peak * rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * fall)))


def draw_lessons(rng: np.random.Generator, stage: Stage, num_rows: int) -> list[Lesson]:
    """Rows of the training split, each in every form of the stage."""
    return [lesson for _ in range(num_rows) for lesson in stage.draw(rng, "train")]


def lesson_states(model: Any, batch: LessonBatch) -> Tensor:
    """Hidden states [B * T, W] of a batch; zero for padding outside of a row's block."""
    family = FAMILIES[model.config.model_type]
    spec = replace(SPEC, mean=family.image_mean, std=family.image_std)
    features = encode_views(model, batch.patches_PD(spec), batch.grids)[batch.feature_of_M]
    num_tokens = batch.token_ids_BT.shape[1]
    row_of_M, column_of_M = batch.placeholder_at_M // num_tokens, batch.placeholder_at_M % num_tokens
    states = []
    for first, stop, length in batch.blocks:
        is_here = (row_of_M >= first) & (row_of_M < stop)
        hidden = hidden_states(
            model,
            batch.token_ids_BT[first:stop, :length],
            batch.positions_3BT[:, first:stop, :length],
            (row_of_M[is_here] - first) * length + column_of_M[is_here],
            features[is_here],
        )
        states.append(F.pad(hidden.reshape(stop - first, length, -1), (0, 0, 0, num_tokens - length)))
    return torch.cat(states).flatten(0, 1)


def lesson_loss(model: nn.Module, batch: LessonBatch, answer_weight: float) -> Tensor:
    """Weighted cross-entropy per token. The target of a decision is the same probability for each of its tokens."""
    hidden = lesson_states(model, batch)
    head: Any = model.lm_head
    certain = F.cross_entropy(head(hidden[batch.certain_from_N]), batch.certain_ids_N, reduction="sum")
    answers = F.cross_entropy(head(hidden[batch.answer_from_B]), batch.answer_ids_B, reduction="sum")
    decided_KY = F.log_softmax(head(hidden[batch.decision_from_K]), dim=-1)
    decisions = -decided_KY.gather(1, batch.choice_KC).mean(1).sum()
    num_plain = len(batch.certain_from_N) + len(batch.decision_from_K)
    total: Tensor = (certain + decisions + answer_weight * answers) / (
        num_plain + answer_weight * len(batch.token_ids_BT)
    )
    return total


class _Drawer(torch.utils.data.Dataset[LessonBatch]):
    """Batch number i, independent of the number of processes."""

    def __init__(self, task: Task, book: LessonBook, *, seed: int, num_steps: int) -> None:
        self.task, self.book, self.seed, self.num_steps = task, book, seed, num_steps

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> LessonBatch:
        if step >= self.num_steps:
            raise IndexError(step)
        stage = stage_at(self.task.stages, step, self.num_steps)
        rng = np.random.default_rng([self.seed, 2, step])
        lessons = draw_lessons(rng, stage, max(1, self.task.batch_size // stage.num_forms))
        return self.book.batch(sorted(lessons, key=lambda lesson: len(self.book.transcript(lesson).token_ids)))


def warm_start(
    output: Path,
    task: Task,
    *,
    family: str = "qwen2_5_vl",
    seed: int = 0,
    steps: int | None = None,
    device: str = "cpu",
    num_workers: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> None:
    """Train the tiny model on a task and save it into `output`, ready for vLLM and transformers.

    `family` is its model_type. `steps` are the task's by default. `progress` is called with the step and its loss.
    Pictures are drawn by `num_workers` processes, or in this one.

    Raises:
        ValueError: the task starts from a model of another family.
    """
    num_steps = task.steps if steps is None else steps
    style = load_prompt_style(task.prompt)
    tokenizer = build_tokenizer(tokenizer_corpus(task, style))
    book = LessonBook(tokenizer, style, task.answers)
    model = build_model(tokenizer, FAMILIES[family], seed=seed)
    architecture_of(model).install()
    if task.start is not None:
        copy_weights(task.start, model, tokenizer)
    nn.Module.to(model, device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    drawer = _Drawer(task, book, seed=seed, num_steps=num_steps)
    batches = torch.utils.data.DataLoader(drawer, batch_size=None, num_workers=num_workers)
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(task.stages, step, num_steps, task.learning_rate)
        loss = lesson_loss(model, batch.to(torch.device(device)), task.answer_weight)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if progress is not None and (step % 50 == 0 or step == num_steps - 1):
            progress(step, loss.item())
    nn.Module.to(model, "cpu", task.stored_as).eval()
    save_tiny(output, model, tokenizer, FAMILIES[family])


@torch.no_grad()
def copy_weights(source: Path, model: Any, tokenizer: Any) -> None:
    """Copy the weights of another tiny model, whose shape differs in the vocabulary alone.

    Embeddings are copied by token; those of new tokens stay as they are.

    Raises:
        ValueError: it is of another family.
    """
    start, own = family_of_folder(source).model_type, model.config.model_type
    if start != own:
        raise ValueError(f"--family={own} is invalid: must be {start} with this task, which starts from {source}")
    theirs, known = dict(load_policy(source).named_parameters()), load_tokenizer(str(source)).get_vocab()
    shared = [(index, known[token]) for token, index in tokenizer.get_vocab().items() if token in known]
    ours_at, theirs_at = (list(column) for column in zip(*shared, strict=True))
    for name, parameter in model.named_parameters():
        if name.endswith("embed_tokens.weight"):
            parameter[ours_at] = theirs[name][theirs_at]
        else:
            parameter.copy_(theirs[name])
