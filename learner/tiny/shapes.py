"""Lessons of the shapes task. Four forms: answered at once from the quarter view, answered after asking, and, without
the tool, answered from either view.

Stages matter: with everything mixed from the start, stripes are not learned in 1,500 steps.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

import numpy as np
import torch

from actors.data.shapes import COARSE, COLOURS, FINE, QUESTIONS, SHAPES, WAYS, Kind, ShapesRow, Split, draw_scene, paint
from actors.tools.registry import RESIZE_ALONE
from actors.tools.resize import RESIZE, RESIZE_CALL
from learner.tiny.lessons import LaterTurn, Lesson, answer_reply, call_reply
from learner.tiny.task import Stage, Task

Form = Literal["direct", "ask", "plain_quarter", "plain_full"]
FORMS: tuple[Form, ...] = get_args(Form)
THOUGHTS = ("shape", "stripes", "flat")
"""Possible thoughts of a reply. Each is one token, and another one with the mark of doubt that leads to a tool call."""
DOUBT = "?"
KINDS = ("colour", "shape", "coarse", "fine")


def thought(row: ShapesRow, *, sees_full: bool) -> str:
    """What the view shows of the thing asked about: the shape, stripes, or a flat square where stripes have vanished.

    It says what is seen and not what to do: a flat square is followed by a guess as often as by a request.
    """
    if row.kind != "stripes":
        return "shape"
    return "flat" if row.needs_full and not sees_full else "stripes"


def lessons_of(row: ShapesRow, forms: tuple[Form, ...] = FORMS) -> list[Lesson]:
    """The row in these forms."""
    picture = paint(row.scene)
    seen, seen_full = thought(row, sees_full=False), thought(row, sees_full=True)
    answers = {seen: answer_reply(seen, row.answer) for seen in (seen, seen_full)}
    later = (LaterTurn(tool=RESIZE.name, view="full", reply=answers[seen_full]),)
    replies = {
        "direct": answers[seen],
        "ask": call_reply(seen + DOUBT, RESIZE_CALL),
        "plain_quarter": answers[seen],
        "plain_full": answers[seen_full],
    }
    kind = row.kind if row.kind != "stripes" else ("fine" if row.needs_full else "coarse")
    return [
        Lesson(
            form=form,
            kind=kind,
            picture=picture,
            question=row.question,
            toolbox=RESIZE_ALONE if form in ("direct", "ask") else None,
            first_view="full" if form == "plain_full" else "quarter",
            reply=replies[form],
            later=later if form == "ask" else (),
            choices=(seen, seen + DOUBT) if form in ("direct", "ask") else (),
        )
        for form in forms
    ]


def _draw(
    kinds: tuple[Kind, ...],
    stripe_widths: tuple[int, ...],
    forms: tuple[Form, ...],
    rng: np.random.Generator,
    split: Split,
) -> list[Lesson]:
    kind = kinds[int(rng.integers(len(kinds)))]
    width = stripe_widths[int(rng.integers(len(stripe_widths)))]
    return lessons_of(ShapesRow(scene=draw_scene(rng, split, stripe_width=width), kind=kind), forms)


def _stage(until: float, kinds: tuple[Kind, ...], stripe_widths: tuple[int, ...], forms: tuple[Form, ...]) -> Stage:
    """Kinds and widths are sampled uniformly; one listed twice is sampled twice as often."""
    return Stage(until=until, num_forms=len(forms), draw=partial(_draw, kinds, stripe_widths, forms))


def _probe(rng: np.random.Generator, number: int) -> list[Lesson]:
    """Held-out rows: a quarter each of colour, shape, coarse and fine stripes."""
    kind: Kind = ("colour", "shape", "stripes", "stripes")[number % 4]
    width = (COARSE, FINE)[number % 4 - 2] if kind == "stripes" else (COARSE, FINE)[int(rng.integers(2))]
    return lessons_of(ShapesRow(scene=draw_scene(rng, "heldout", stripe_width=width), kind=kind))


SHAPES_TASK = Task(
    prompt="tiny",
    start=None,
    steps=2500,
    batch_size=128,
    learning_rate=1.5e-3,
    answer_weight=5.0,
    stored_as=torch.float32,
    questions=tuple(QUESTIONS.values()),
    words=(*THOUGHTS, *(seen + DOUBT for seen in THOUGHTS), RESIZE_CALL),
    answers=(*COLOURS, *SHAPES, *WAYS),
    stages=(
        _stage(0.08, ("stripes",), (COARSE,), ("direct", "plain_quarter")),
        _stage(0.16, ("stripes",), (FINE, FINE, COARSE), ("ask", "plain_full")),
        _stage(1.0, ("colour", "shape", "stripes", "stripes"), (FINE, COARSE), FORMS),
    ),
    probe=_probe,
)
