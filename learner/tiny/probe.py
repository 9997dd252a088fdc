"""What a warm-started model can do, measured on held-out pictures without sampling noise.

Every row is read in all four forms with its reply given, and the probabilities at the reply's tokens are looked at:
is the right answer the likeliest, how likely is asking, how much probability is left for anything malformed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.data.shapes import COARSE, FINE, Kind, ShapesRow, draw_scene
from actors.prompts import load_prompt_style, load_tokenizer
from learner.model import load_policy
from learner.tiny.lessons import FORMS, Lesson, LessonBatch, LessonBook
from learner.tiny.warmstart import lesson_states

KINDS = ("colour", "shape", "coarse", "fine")


def probe_rows(num_rows: int, *, seed: int) -> list[ShapesRow]:
    """Held-out rows: a quarter each of colour, shape, coarse and fine stripes."""
    rng = np.random.default_rng([seed, 3])
    rows = []
    for number in range(num_rows):
        kind: Kind = ("colour", "shape", "stripes", "stripes")[number % 4]
        width = (COARSE, FINE)[number % 4 - 2] if kind == "stripes" else (COARSE, FINE)[int(rng.integers(2))]
        rows.append(ShapesRow(scene=draw_scene(rng, "heldout", stripe_width=width), kind=kind))
    return rows


@torch.no_grad()
def probe(
    model_folder: Path, rows: Sequence[ShapesRow], *, device: str = "cpu", batch_size: int = 64
) -> dict[str, float]:
    """Shares from 0 to 1. `right/FORM/KIND`, `ask/KIND` (mean probability of asking) with its extremes over pictures,
    and `well_formed/FORM`: the least probability that a reply sampled at temperature 1 keeps the form."""
    model: Any = load_policy(model_folder, device=device).eval()
    book = LessonBook(load_tokenizer(str(model_folder)), load_prompt_style("tiny"))
    figures: dict[str, list[float]] = defaultdict(list)
    for form in FORMS:
        for first in range(0, len(rows), batch_size):
            chunk = rows[first : first + batch_size]
            batch = book.batch([Lesson(row=row, form=form) for row in chunk]).to(torch.device(device))
            is_right, formed, asks = _read(model, book, batch)
            for index, row in enumerate(chunk):
                kind = _kind(row)
                figures[f"right/{form}/{kind}"].append(is_right[index])
                figures[f"well_formed/{form}"].append(formed[index])
                if form == "direct":
                    figures[f"ask/{kind}"].append(asks[index])
    summary = {name: float(np.mean(values)) for name, values in sorted(figures.items())}
    asked = np.concatenate([figures[f"ask/{kind}"] for kind in KINDS if f"ask/{kind}" in figures])
    summary |= {"ask/least": float(asked.min()), "ask/most": float(asked.max())}
    return summary


def _kind(row: ShapesRow) -> str:
    return row.kind if row.kind != "stripes" else ("fine" if row.needs_full else "coarse")


def _read(model: Any, book: LessonBook, batch: LessonBatch) -> tuple[list[float], list[float], list[float]]:
    """Per episode: 1 if the right answer is the likeliest, the probability of the form, the probability of asking."""
    hidden = lesson_states(model, batch)

    def log_probabilities(at: Tensor) -> Tensor:
        return torch.log_softmax(model.lm_head(hidden[at]).float(), dim=-1)

    answers = log_probabilities(batch.answer_from_B)
    is_right = (answers.argmax(-1) == batch.answer_ids_B).float()
    formed = answers[:, list(book.answer_ids)].logsumexp(-1)
    certain = log_probabilities(batch.certain_from_N).gather(1, batch.certain_ids_N[:, None]).squeeze(1)
    formed = formed.index_add(0, batch.certain_episode_N, certain)
    asks = torch.zeros_like(formed)
    if len(batch.decision_from_K):
        decisions = log_probabilities(batch.decision_from_K).gather(1, batch.choice_K2)
        formed = formed.index_add(0, batch.decision_episode_K, decisions.logsumexp(-1))
        asks = asks.index_add(0, batch.decision_episode_K, decisions[:, 1].exp())
    return is_right.tolist(), formed.exp().tolist(), asks.tolist()
