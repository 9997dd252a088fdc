"""The shapes task, in which the need for resolution is known exactly: a coloured shape and a striped square.

There are three questions per image: the colour of the shape, the shape, and the direction of the square's stripes. They
are coarse or fine. Every 2 x 2 block of fine stripes holds two white and two coloured pixels, whichever way they run,
so halving each side turns all fine stripes into the same flat square, bit for bit: the information is lost entirely, a
guess is right with probability 1 / `len(WAYS)`, and the flat square shows that the tool is needed. Coarse stripes
survive.

A row needs the full view exactly when it asks about stripes and they are fine.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Kind = Literal["colour", "shape", "stripes"]
Split = Literal["train", "heldout"]
Picture = npt.NDArray[np.uint8]

SIDE = 224
"""Side of an image in pixels: 8 x 8 visual tokens of Qwen2.5-VL, 4 x 4 in the quarter view."""
SHAPE_SIDE, SQUARE_SIDE = 84, 56
SQUARE_TOP = 140
STEP = 14
"""Shapes lie on a grid of this many pixels, squares on one of twice as many, so no 2 x 2 block straddles an edge."""
FINE, COARSE = 1, 6
"""Width of a stripe in pixels."""
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (230, 210, 40),
    "purple": (150, 50, 180),
    "orange": (240, 140, 30),
}
SHAPES = ("circle", "square", "triangle")
WAYS = ("across", "down", "checks", "weave")
QUESTIONS: dict[Kind, str] = {
    "colour": "what colour is the shape?",
    "shape": "which shape is it?",
    "stripes": "which way do the stripes run?",
}
HELDOUT_SHARE = 8
"""One image in this many belongs to the held-out split."""
ROWS_PER_GROUP = 256
SCHEMA = pa.schema(
    [
        ("problem", pa.string()),
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        ("original_answer", pa.string()),
        ("doc_id", pa.string()),
        ("info", pa.struct([("tgt_width", pa.int64()), ("tgt_height", pa.int64()), ("use_tool", pa.bool_())])),
    ]
)
"""Columns of the published VisionThink sets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The content of one image."""

    ground: str
    colour: str
    shape: str
    shape_left: int
    shape_top: int
    way: str
    stripe_width: int
    """FINE or COARSE, in pixels."""
    stripe_colour: str
    square_left: int

    @property
    def split(self) -> Split:
        """The split of this scene, determined by a hash, so that splits share no image whatever their seeds."""
        return "heldout" if zlib.crc32(repr(astuple(self)).encode()) % HELDOUT_SHARE == 0 else "train"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapesRow:
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
    def needs_full(self) -> bool:
        return self.kind == "stripes" and self.scene.stripe_width == FINE


def draw_scene(rng: np.random.Generator, split: Split, *, stripe_width: int) -> Scene:
    """A scene of the split, all of them equally likely."""
    while True:
        scene = Scene(
            ground=pick(rng, tuple(COLOURS)),
            colour=pick(rng, tuple(COLOURS)),
            shape=pick(rng, SHAPES),
            shape_left=STEP * int(rng.integers((SIDE - SHAPE_SIDE) // STEP + 1)),
            shape_top=STEP * int(rng.integers((SQUARE_TOP - SHAPE_SIDE) // STEP + 1)),
            way=pick(rng, WAYS),
            stripe_width=stripe_width,
            stripe_colour=pick(rng, tuple(COLOURS)),
            square_left=2 * STEP * int(rng.integers((SIDE - SQUARE_SIDE) // (2 * STEP) + 1)),
        )
        if scene.split == split:
            return scene


def draw_row(rng: np.random.Generator, split: Split, *, needs_full_share: float) -> ShapesRow:
    """A row: needs the full view with the given probability, otherwise any other question and picture."""
    if rng.random() < needs_full_share:
        return ShapesRow(scene=draw_scene(rng, split, stripe_width=FINE), kind="stripes")
    kind: Kind = ("colour", "shape", "stripes")[int(rng.integers(3))]
    width = COARSE if kind == "stripes" else (FINE, COARSE)[int(rng.integers(2))]
    return ShapesRow(scene=draw_scene(rng, split, stripe_width=width), kind=kind)


def paint(scene: Scene) -> Picture:
    """The picture of a scene, uint8 [SIDE, SIDE, 3]. The ground is a light tint, so that no shape sinks into it."""
    tint = (np.asarray(COLOURS[scene.ground]) * 0.35 + 255 * 0.65).astype(np.uint8)
    picture = np.empty((SIDE, SIDE, 3), np.uint8)
    picture.reshape(SIDE, -1)[:] = np.tile(tint, SIDE)  # row-wise for speed: a warm start paints hundreds per step
    paint_shape(picture, scene.shape, scene.colour, left=scene.shape_left, top=scene.shape_top)
    paint_stripes(picture, scene.way, scene.stripe_width, scene.stripe_colour, left=scene.square_left, top=SQUARE_TOP)
    return picture


def paint_shape(picture: Picture, shape: str, colour: str, *, left: int, top: int) -> None:
    around_shape = picture[top : top + SHAPE_SIDE, left : left + SHAPE_SIDE]
    np.copyto(around_shape, rgb(colour), where=shape_mask(shape)[..., None])


def paint_stripes(
    picture: Picture, way: str, width: int, colour: str, *, left: int, top: int, side: int = SQUARE_SIDE
) -> None:
    square = picture[top : top + side, left : left + side]
    square[:] = 255
    np.copyto(square, rgb(colour), where=stripe_mask(way, width)[:side, :side, None])


@cache
def shape_mask(shape: str) -> npt.NDArray[np.bool_]:
    """[SHAPE_SIDE, SHAPE_SIDE], true inside the shape."""
    y, x = np.mgrid[0:SHAPE_SIDE, 0:SHAPE_SIDE] + 0.5
    middle = SHAPE_SIDE / 2
    match shape:
        case "circle":
            inside = (x - middle) ** 2 + (y - middle) ** 2 <= middle**2
        case "square":
            inside = np.ones_like(x, dtype=np.bool_)
        case "triangle":
            inside = np.abs(x - middle) * 2 <= y
        case _:
            raise ValueError(f"shape={shape!r} is unknown: use one of {SHAPES}")
    return np.asarray(inside, dtype=np.bool_)


@cache
def stripe_mask(way: str, width: int) -> npt.NDArray[np.bool_]:
    """[SQUARE_SIDE, SQUARE_SIDE], true where coloured. `weave` lets blocks of two stripes run across and down by turns.

    With width 1 every 2 x 2 block at even offsets holds exactly two true pixels.
    """
    y, x = np.mgrid[0:SQUARE_SIDE, 0:SQUARE_SIDE] // width
    match way:
        case "across":
            coloured = y % 2
        case "down":
            coloured = x % 2
        case "checks":
            coloured = (x + y) % 2
        case "weave":
            coloured = np.where((x // 2 + y // 2) % 2 == 0, y % 2, x % 2)
        case _:
            raise ValueError(f"way={way!r} is unknown: use one of {WAYS}")
    return np.asarray(coloured == 1, dtype=np.bool_)


def encode_png(picture: Picture) -> bytes:
    """Lossless, since JPEG would blur fine stripes."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def write_split(
    path: Path,
    *,
    num_rows: int,
    seed: int,
    split: Split,
    needs_full_share: float = 1 / 3,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write one split; the same seed gives identical bytes. `progress` is called with the number of rows just
    written."""
    if not 0 <= needs_full_share <= 1:
        raise ValueError(f"needs_full_share={needs_full_share} is invalid: must be from 0 to 1")
    rng = np.random.default_rng([seed, ("train", "heldout").index(split)])
    rows = (draw_row(rng, split, needs_full_share=needs_full_share) for _ in range(num_rows))
    write_records(path, SCHEMA, _records(rows, split), num_rows=num_rows, progress=progress)


def write_records(
    path: Path,
    schema: pa.Schema,
    records: Iterator[dict[str, object]],
    *,
    num_rows: int,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write records as Parquet with page checksums, atomically. `progress` is called with the number just written."""
    if num_rows < 1:
        raise ValueError(f"num_rows={num_rows} is invalid: must be at least 1")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with pq.ParquetWriter(partial, schema, compression="zstd", write_page_checksum=True) as writer:
            while group := list(islice(records, ROWS_PER_GROUP)):
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
                if progress is not None:
                    progress(len(group))
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def make_shapes(
    directory: Path,
    *,
    train_rows: int = 8000,
    heldout_rows: int = 500,
    seed: int = 0,
    needs_full_share: float = 1 / 3,
    progress: Callable[[Split, int], None] | None = None,
) -> dict[Split, Path]:
    """Write `train.parquet` and `heldout.parquet` into the directory and return their paths."""
    sizes: dict[Split, int] = {"train": train_rows, "heldout": heldout_rows}
    paths: dict[Split, Path] = {}
    for split, num_rows in sizes.items():
        paths[split] = directory / f"{split}.parquet"
        report = None if progress is None else _for_split(progress, split)
        write_split(
            paths[split],
            num_rows=num_rows,
            seed=seed,
            split=split,
            needs_full_share=needs_full_share,
            progress=report,
        )
    return paths


def _for_split(progress: Callable[[Split, int], None], split: Split) -> Callable[[int], None]:
    return lambda num_rows: progress(split, num_rows)


def _records(rows: Iterator[ShapesRow], split: Split) -> Iterator[dict[str, object]]:
    for number, row in enumerate(rows):
        name = f"shapes-{split}-{number:06d}"
        yield {
            "problem": row.question,
            "images": [{"bytes": encode_png(paint(row.scene)), "path": f"{name}.png"}],
            "original_answer": row.answer,
            "doc_id": name,
            "info": {"tgt_width": SIDE, "tgt_height": SIDE, "use_tool": row.needs_full},
        }


def pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]


def rgb(colour: str) -> npt.NDArray[np.uint8]:
    return np.asarray(COLOURS[colour], dtype=np.uint8)
