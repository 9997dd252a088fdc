"""The crop task: what a question needs is the quarter view, one small region, or the whole picture.

The questions are those of the shapes task (`actors.data.shapes`): colour and form of a shape, direction of stripes. The
ground has four fields, each with a colour of its own, and striped squares lie in the corners. A *single* picture has
one square. A *scattered* one has four, of which one has stripes; the others have the flat colour that fine stripes turn
into in the quarter view, bit for bit. So a question about stripes needs

- the quarter view, where they are coarse;
- one region, where they are fine and the square is single: the quarter view shows where it is, not what it shows;
- the whole picture, where they are fine and the squares scattered: the quarter view does not even show which one has
  them, and the box that holds all four is the whole picture. (This assumes that a question may be looked into once.
  Looking into one corner after the other would cost less.)

Questions about the shape need the quarter view alone.

A region is a corner of 1/16 of the picture: one visual token of the quarter view, 2 x 2 of the full view. The fields
have colours because the policy hardly sees positions: by the rotary positions of the tiny model, neighbouring columns
differ by 0.003 radians. It reads the box off the ground around the square, as on a map with coloured fields.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from actors.data.shapes import (
    COARSE,
    COLOURS,
    FINE,
    HELDOUT_SHARE,
    QUESTIONS,
    SHAPE_SIDE,
    SHAPES,
    SIDE,
    STEP,
    WAYS,
    Kind,
    Picture,
    Split,
    encode_png,
    paint_shape,
    paint_stripes,
    pick,
    rgb,
    write_records,
)
from actors.data.shapes import SCHEMA as SHAPES_SCHEMA
from actors.needs import NEEDS, Need
from actors.views import Crop, cut_view

CORNERS = ("upper left", "upper right", "lower left", "lower right")
FIELDS: dict[str, str] = dict(zip(CORNERS, ("red", "green", "blue", "yellow"), strict=True))
"""Colour of the ground around each corner."""
FIELD_STRENGTH = 0.6
"""Share of the colour in the ground; the rest is white."""
REGION_SIDE, SQUARE_SIDE = 56, 40
"""Sides in pixels of a region, and of the square in its middle."""
STRIPE_COLOURS = ("purple", "orange")
"""Those of no field."""
SCHEMA = pa.schema(
    [
        *(field for field in SHAPES_SCHEMA if field.name != "info"),
        (
            "info",
            pa.struct(
                [*SHAPES_SCHEMA.field("info").type, ("needs", pa.string()), ("region", pa.list_(pa.float64()))],
            ),
        ),
    ]
)
"""As the shapes task. `info.use_tool` is true where the quarter view is not enough, `info.needs` is a `Need`, and
`info.region` is the box of a region that is needed: left, top, right, bottom, as fractions of the sides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The content of one image."""

    colour: str
    shape: str
    shape_left: int
    shape_top: int
    way: str
    stripe_width: int
    """FINE or COARSE, in pixels."""
    stripe_colour: str
    corner: str
    """With the striped square."""
    is_scattered: bool
    """Whether the other corners have flat squares."""

    @property
    def split(self) -> Split:
        """As of a scene of the shapes task."""
        return "heldout" if zlib.crc32(repr(astuple(self)).encode()) % HELDOUT_SHARE == 0 else "train"


@dataclass(frozen=True, slots=True, kw_only=True)
class CropRow:
    """A scene and a question about it."""

    scene: Scene
    kind: Kind

    @property
    def question(self) -> str:
        return QUESTIONS[self.kind]

    @property
    def answer(self) -> str:
        return {"colour": self.scene.colour, "shape": self.scene.shape, "stripes": self.scene.way}[self.kind]

    @property
    def needs(self) -> Need:
        if self.kind != "stripes" or self.scene.stripe_width == COARSE:
            return "quarter"
        return "full" if self.scene.is_scattered else "region"


def region_of(corner: str) -> Crop:
    """The region at a corner, in pixels of the full view."""
    top = 0 if corner.startswith("upper") else SIDE - REGION_SIDE
    left = 0 if corner.endswith("left") else SIDE - REGION_SIDE
    return Crop(left=left, top=top, right=left + REGION_SIDE, bottom=top + REGION_SIDE)


def draw_scene(rng: np.random.Generator, split: Split, *, stripe_width: int, is_scattered: bool) -> Scene:
    """A scene of the split, all of them equally likely. No shape reaches into a region."""
    while True:
        left, top = (STEP * int(rng.integers((SIDE - SHAPE_SIDE) // STEP + 1)) for _ in range(2))
        scene = Scene(
            colour=pick(rng, tuple(COLOURS)),
            shape=pick(rng, SHAPES),
            shape_left=left,
            shape_top=top,
            way=pick(rng, WAYS),
            stripe_width=stripe_width,
            stripe_colour=pick(rng, STRIPE_COLOURS),
            corner=pick(rng, CORNERS),
            is_scattered=is_scattered,
        )
        if scene.split == split and not any(_overlaps(corner, left, top) for corner in CORNERS):
            return scene


def draw_row(rng: np.random.Generator, split: Split, *, need: Need) -> CropRow:
    """A row with this need, otherwise any question and picture."""
    if need != "quarter":
        scene = draw_scene(rng, split, stripe_width=FINE, is_scattered=need == "full")
        return CropRow(scene=scene, kind="stripes")
    kind: Kind = ("colour", "shape", "stripes")[int(rng.integers(3))]
    width = COARSE if kind == "stripes" else (FINE, COARSE)[int(rng.integers(2))]
    scene = draw_scene(rng, split, stripe_width=width, is_scattered=bool(rng.integers(2)))
    return CropRow(scene=scene, kind=kind)


def paint(scene: Scene) -> Picture:
    """The picture of a scene, uint8 [SIDE, SIDE, 3]."""
    picture = _fields().copy()
    paint_shape(picture, scene.shape, scene.colour, left=scene.shape_left, top=scene.shape_top)
    margin = (REGION_SIDE - SQUARE_SIDE) // 2
    for corner in CORNERS if scene.is_scattered else (scene.corner,):
        region = cut_view(picture, region_of(corner))
        if corner == scene.corner:
            side = SQUARE_SIDE
            paint_stripes(
                region, scene.way, scene.stripe_width, scene.stripe_colour, left=margin, top=margin, side=side
            )
        else:
            region[margin:-margin, margin:-margin] = (255 + rgb(scene.stripe_colour).astype(int) + 1) // 2
    return picture


@cache
def _fields() -> Picture:
    """The ground."""
    picture = np.empty((SIDE, SIDE, 3), np.uint8)
    middle = SIDE // 2
    for corner, colour in FIELDS.items():
        rows = slice(0, middle) if corner.startswith("upper") else slice(middle, SIDE)
        columns = slice(0, middle) if corner.endswith("left") else slice(middle, SIDE)
        picture[rows, columns] = rgb(colour) * FIELD_STRENGTH + 255 * (1 - FIELD_STRENGTH)
    return picture


def make_crop(
    directory: Path,
    *,
    train_rows: int = 8000,
    heldout_rows: int = 500,
    seed: int = 0,
    progress: Callable[[Split, int], None] | None = None,
) -> dict[Split, Path]:
    """Write `train.parquet` and `heldout.parquet` into the directory and return their paths.

    The needs take turns, a third each; the same seed gives identical bytes.
    """
    sizes: dict[Split, int] = {"train": train_rows, "heldout": heldout_rows}
    paths: dict[Split, Path] = {split: directory / f"{split}.parquet" for split in sizes}
    for index, (split, num_rows) in enumerate(sizes.items()):
        rng = np.random.default_rng([seed, index])
        report = None if progress is None else _for_split(progress, split)
        write_records(paths[split], SCHEMA, _records(rng, split, num_rows), num_rows=num_rows, progress=report)
    return paths


def _for_split(progress: Callable[[Split, int], None], split: Split) -> Callable[[int], None]:
    return lambda num_rows: progress(split, num_rows)


def _records(rng: np.random.Generator, split: Split, num_rows: int) -> Iterator[dict[str, object]]:
    for number in range(num_rows):
        row = draw_row(rng, split, need=NEEDS[number % len(NEEDS)])
        name = f"crop-{split}-{number:06d}"
        yield {
            "problem": row.question,
            "images": [{"bytes": encode_png(paint(row.scene)), "path": f"{name}.png"}],
            "original_answer": row.answer,
            "doc_id": name,
            "info": {
                "tgt_width": SIDE,
                "tgt_height": SIDE,
                "use_tool": row.needs != "quarter",
                "needs": row.needs,
                "region": _fractions(region_of(row.scene.corner)) if row.needs == "region" else None,
            },
        }


def _fractions(crop: Crop) -> list[float]:
    return [side / SIDE for side in (crop.left, crop.top, crop.right, crop.bottom)]


def _overlaps(corner: str, shape_left: int, shape_top: int) -> bool:
    at = region_of(corner)
    beside = at.right <= shape_left or shape_left + SHAPE_SIDE <= at.left
    return not (beside or at.bottom <= shape_top or shape_top + SHAPE_SIDE <= at.top)
