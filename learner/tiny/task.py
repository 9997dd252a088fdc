"""What a warm start must know of a task: its words, its lessons, and the order in which they are learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from actors.data.shapes import Split
from actors.prompts import PromptStyle
from learner.tiny.lessons import Lesson


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Training data during one stage of the warm start."""

    until: float
    """Fraction of all steps at which the stage ends."""
    num_forms: int
    """Lessons per row: each row appears in all forms of the stage, so that tool calls and answers are balanced."""
    draw: Callable[[np.random.Generator, Split], list[Lesson]]
    """The lessons of one row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    prompt: str
    """Prompt template, as `model.prompt`."""
    start: Path | None
    """Model folder whose weights, and embeddings of the tokens in both vocabularies, are the start; None is random."""
    steps: int
    """Optimizer steps that suffice."""
    batch_size: int
    learning_rate: float
    answer_weight: float
    """Of the answer, one token among many format tokens: above 1 where it is the hard one to learn."""
    stored_as: torch.dtype
    """Of the weights in the folder; half the size in float16."""
    questions: tuple[str, ...]
    words: tuple[str, ...]
    """Texts of replies that become tokens: thoughts and calls."""
    answers: tuple[str, ...]
    stages: tuple[Stage, ...]
    probe: Callable[[np.random.Generator, int], list[Lesson]]
    """The lessons, in all forms, of the held-out row of this number, kinds by turns."""


def tokenizer_corpus(task: Task, style: PromptStyle) -> list[str]:
    """All text around the special tokens of any episode."""
    users = (style.user, style.user_without_tool)
    questions = [user.format(question=question) for question in task.questions for user in users]
    headers = [style.system, style.system_without_tool, style.followup, "system\n", "user\n", "assistant\n", "\n"]
    return [text for text in (*questions, *headers, *task.words, *task.answers) if text]
