"""A contact sheet: rows of a data set as the policy sees them, quarter view beside full view, question and answer."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from actors.images import ViewSpec, can_quarter, quarter_view
from cluster.datasets.check import Shown

SIDE = 280
"""Largest side of a view on the sheet, in pixels."""
GAP, FONT_SIZE = 12, 14
LINE = FONT_SIZE + 4
CHARS, MAX_LINES = 70, 6
COLUMNS = 3
NEED = {True: "full view needed", False: "quarter view is enough", None: "need unknown"}


def draw_sheet(rows: Sequence[Shown], spec: ViewSpec) -> Image.Image:
    """One cell for each row, in `COLUMNS` columns. A quarter view is enlarged to the size of the full one."""
    cell = (2 * SIDE + 3 * GAP, SIDE + (MAX_LINES + 2) * LINE + 2 * GAP)
    num_columns = min(COLUMNS, max(len(rows), 1))
    num_lines = max(-(-len(rows) // COLUMNS), 1)
    sheet = Image.new("RGB", (num_columns * cell[0], num_lines * cell[1]), "white")
    font = ImageFont.truetype(findfont("DejaVu Sans"), FONT_SIZE)
    for index, row in enumerate(rows):
        corner = (index % COLUMNS * cell[0] + GAP, index // COLUMNS * cell[1] + GAP)
        _draw_cell(sheet, corner, row, spec, font)
    return sheet


def _draw_cell(
    sheet: Image.Image, corner: tuple[int, int], row: Shown, spec: ViewSpec, font: ImageFont.FreeTypeFont
) -> None:
    left, top = corner
    full = Image.fromarray(row.full)
    is_halved = can_quarter(full.height, full.width, spec)
    scale = SIDE / max(full.size)
    size = (max(round(full.width * scale), 1), max(round(full.height * scale), 1))
    if is_halved:
        quarter = Image.fromarray(quarter_view(row.full))
        sheet.paste(quarter.resize(size, Image.Resampling.NEAREST), (left, top))
    sheet.paste(
        full.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS), (left + SIDE + GAP, top)
    )
    tokens = full.width * full.height // spec.token_side**2
    halves = (
        f"{tokens // 4} and {tokens} visual tokens" if is_halved else f"{tokens} visual tokens, too small to quarter"
    )
    head = f"row {row.sample.ref.row}: {halves}, {NEED[row.sample.needs_full]}"
    lines = [head, *_wrapped(f"Q: {row.sample.question}", MAX_LINES - 2), *_wrapped(f"A: {row.sample.answer}", 2)]
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((left, top + SIDE + GAP // 2 + number * LINE), line, fill="black", font=font)


def _wrapped(text: str, max_lines: int) -> list[str]:
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, CHARS)]
    return [*lines[: max_lines - 1], lines[max_lines - 1][: CHARS - 2] + " …"] if len(lines) > max_lines else lines


def write_sheet(path: Path, rows: Sequence[Shown], spec: ViewSpec) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_sheet(rows, spec).save(path, "PNG")
