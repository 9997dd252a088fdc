"""Evaluates a warm-started model on held-out images, without sampling noise.

Every row is scored in all forms with its reply given, and the probabilities of the reply's tokens are measured: is the
correct answer the most likely one, how likely is each tool call, how likely is a malformed reply.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.prompts import load_prompt_style, load_tokenizer
from learner.model import load_policy
from learner.tiny.lessons import Lesson, LessonBatch, LessonBook
from learner.tiny.task import Task
from learner.tiny.warmstart import lesson_states


def probe_lessons(task: Task, num_rows: int, *, seed: int) -> list[Lesson]:
    """Held-out rows in all forms, kinds by turns."""
    rng = np.random.default_rng([seed, 3])
    return [lesson for number in range(num_rows) for lesson in task.probe(rng, number)]


@torch.no_grad()
def probe(
    model_folder: Path, task: Task, lessons: Sequence[Lesson], *, device: str = "cpu", batch_size: int = 64
) -> dict[str, float]:
    """Shares from 0 to 1. `right/FORM/KIND`, `well_formed/FORM`: the minimum probability that a reply sampled at
    temperature 1 is well formed, `ask/KIND`: the mean probability of any tool call, with its extremes over images, and
    `choice/NUMBER/KIND`: that of each tool where there are several."""
    model: Any = load_policy(model_folder, device=device).eval()
    book = LessonBook(load_tokenizer(str(model_folder)), load_prompt_style(task.prompt), task.answers)
    figures: dict[str, list[float]] = defaultdict(list)
    for form in dict.fromkeys(lesson.form for lesson in lessons):
        of_form = [lesson for lesson in lessons if lesson.form == form]
        for first in range(0, len(of_form), batch_size):
            chunk = of_form[first : first + batch_size]
            is_right, formed, choices = _read(model, book, book.batch(chunk).to(torch.device(device)))
            for index, lesson in enumerate(chunk):
                figures[f"right/{form}/{lesson.kind}"].append(is_right[index])
                figures[f"well_formed/{form}"].append(formed[index])
                if form == "direct":
                    figures[f"ask/{lesson.kind}"].append(sum(choices[index][1:]))
                    for number, probability in enumerate(choices[index][1:] if len(choices[index]) > 2 else ()):
                        figures[f"choice/{number}/{lesson.kind}"].append(probability)
    summary = {name: float(np.mean(values)) for name, values in sorted(figures.items())}
    asked = np.concatenate([values for name, values in figures.items() if name.startswith("ask/")])
    return summary | {"ask/least": float(asked.min()), "ask/most": float(asked.max())}


def _read(model: Any, book: LessonBook, batch: LessonBatch) -> tuple[list[float], list[float], list[list[float]]]:
    """Per episode: 1 if the correct answer is the most likely, the probability of its format, and those of the choices.

    The last is in order of the episodes that choose; all or none of a form do.
    """
    hidden = lesson_states(model, batch)

    def log_probabilities(at: Tensor) -> Tensor:
        return torch.log_softmax(model.lm_head(hidden[at]).float(), dim=-1)

    answers = log_probabilities(batch.answer_from_B)
    is_right = (answers.argmax(-1) == batch.answer_ids_B).float()
    formed = answers[:, list(book.answer_ids)].logsumexp(-1)
    certain = log_probabilities(batch.certain_from_N).gather(1, batch.certain_ids_N[:, None]).squeeze(1)
    formed = formed.index_add(0, batch.certain_episode_N, certain)
    decisions = torch.empty(0, 0, device=hidden.device)
    if len(batch.decision_from_K):
        decisions = log_probabilities(batch.decision_from_K).gather(1, batch.choice_KC)
        formed = formed.index_add(0, batch.decision_episode_K, decisions.logsumexp(-1))
    return is_right.tolist(), formed.exp().tolist(), decisions.exp().tolist()
