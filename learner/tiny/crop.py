"""Lessons of the crop task. Five forms: answered at once from the quarter view, after the full view, after a crop,
and, without tools, answered from either view.

The start is the shipped model of the shapes task, which reads both views already: what is new are the words of the
thoughts, the call with a box, and crops. Where a square lies is the hard thing to learn, so a first stage has crops
alone, of all kinds of rows lest the model forget shapes (configs/tiny_crop/README.md).
"""

from __future__ import annotations

import json
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch

from actors.data.crop import CORNERS, CropRow, draw_row, paint, region_of
from actors.data.shapes import COARSE, COLOURS, QUESTIONS, SHAPES, WAYS, Split, pick
from actors.needs import NEEDS, Need
from actors.tools.local_region import LOCAL_REGION
from actors.tools.registry import toolbox_of
from actors.tools.resize import RESIZE, RESIZE_CALL
from configs.paths import ROOT
from configs.tools import ToolsConfig
from learner.tiny.lessons import LaterTurn, Lesson, answer_reply, call_reply
from learner.tiny.task import Stage, Task

Form = Literal["direct", "resize", "crop", "plain_quarter", "plain_full"]
FORMS: tuple[Form, ...] = get_args(Form)
TOOLBOX = toolbox_of(ToolsConfig(names=(RESIZE.name, LOCAL_REGION.name)))
CODES = dict(zip(CORNERS, ("ul", "ur", "ll", "lr"), strict=True))
CONTENTS = ("shape", "stripes", "many", *(f"flat-{code}" for code in CODES.values()))
"""What the quarter view shows of the thing asked about: the shape, stripes, several flat squares, or one and where.

Each is one token, and so is each with a mark for the call that follows. As in the shapes task, the thought says what is
seen, and every mark is equally likely: one token per content and call, so that a policy gradient can tell contents
apart at once. The place comes first because there the model looks at the square anyway; the box only repeats it."""
MARKS = ("", "+", "@")
"""Of an answer, of a call for the whole picture, of a call for a place."""
MISSED = "flat"
"""What a crop shows that misses the stripes."""


def thought(row: CropRow, *, view: Literal["quarter", "full"]) -> str:
    if row.kind != "stripes":
        return "shape"
    if view == "full" or row.scene.stripe_width == COARSE:
        return "stripes"
    return "many" if row.scene.is_scattered else f"flat-{CODES[row.scene.corner]}"


def crop_call(corner: str) -> str:
    """The call for a region, in pixels of the quarter view, which is half as wide as the full view."""
    at = region_of(corner)
    box = [side // 2 for side in (at.left, at.top, at.right, at.bottom)]
    return json.dumps({"name": LOCAL_REGION.name, "arguments": {"bbox_2d": box}})


def looked_at(row: CropRow, rng: np.random.Generator) -> str:
    """The corner that a crop shows: the one with stripes where they, or a single flat square, can be seen in the
    quarter view, otherwise any."""
    can_be_seen = row.kind == "stripes" and row.needs != "full"
    return row.scene.corner if can_be_seen else pick(rng, CORNERS)


def lessons_of(row: CropRow, rng: np.random.Generator, forms: tuple[Form, ...] = FORMS) -> list[Lesson]:
    """The row in these forms. A crop that misses the stripes shows a flat square, and what follows is a guess."""
    picture = paint(row.scene)
    seen, seen_full = thought(row, view="quarter"), thought(row, view="full")
    corner = looked_at(row, rng)
    seen_crop = MISSED if row.kind == "stripes" and corner != row.scene.corner else seen_full
    replies = {
        "direct": answer_reply(seen, row.answer),
        "resize": call_reply(seen + MARKS[1], RESIZE_CALL),
        "crop": call_reply(seen + MARKS[2], crop_call(corner)),
        "plain_quarter": answer_reply(seen, row.answer),
        "plain_full": answer_reply(seen_full, row.answer),
    }
    after = {
        "resize": LaterTurn(tool=RESIZE.name, view="full", reply=answer_reply(seen_full, row.answer)),
        "crop": LaterTurn(tool=LOCAL_REGION.name, view=region_of(corner), reply=answer_reply(seen_crop, row.answer)),
    }
    kind = row.kind if row.kind != "stripes" else {"quarter": "coarse"}.get(row.needs, row.needs)
    return [
        Lesson(
            form=form,
            kind=kind,
            picture=picture,
            question=row.question,
            toolbox=None if form.startswith("plain") else TOOLBOX,
            first_view="full" if form == "plain_full" else "quarter",
            reply=replies[form],
            later=(after[form],) if form in after else (),
            choices=() if form.startswith("plain") else tuple(seen + mark for mark in MARKS),
        )
        for form in forms
    ]


def _draw(needs: tuple[Need, ...], forms: tuple[Form, ...], rng: np.random.Generator, split: Split) -> list[Lesson]:
    need = needs[int(rng.integers(len(needs)))]
    return lessons_of(draw_row(rng, split, need=need), rng, forms)


def _probe(rng: np.random.Generator, number: int) -> list[Lesson]:
    return lessons_of(draw_row(rng, "heldout", need=NEEDS[number % len(NEEDS)]), rng)


CROP_TASK = Task(
    prompt="tiny",
    start=ROOT / "configs" / "tiny",
    steps=800,
    batch_size=40,
    learning_rate=1e-3,
    answer_weight=1.0,
    stored_as=torch.float16,
    questions=tuple(QUESTIONS.values()),
    words=(
        MISSED,
        *(seen + mark for seen in CONTENTS for mark in MARKS),
        RESIZE_CALL,
        *(crop_call(corner) for corner in CORNERS),
    ),
    answers=(*COLOURS, *SHAPES, *WAYS),
    stages=(
        Stage(until=0.2, num_forms=1, draw=partial(_draw, NEEDS, ("crop",))),
        Stage(until=1.0, num_forms=len(FORMS), draw=partial(_draw, NEEDS, FORMS)),
    ),
    probe=_probe,
)
