"""Boxes: how a policy gives them, which are refused, and the crop of the full view that one becomes.

A box refers to a picture that the policy was shown: x to the right and y down from its upper left corner, in its
pixels or in thousandths of its sides. That picture shows a region of the full view, which may itself be a crop: boxes
compose. The region that is asked for is enlarged to whole visual tokens of the full view. Computed with fractions:
rounding never adds a row of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from actors.tools.tool import Scene, Schema, WrongCall
from actors.views import Crop, View, region, shown_size
from configs.tools import ToolsConfig

RELATIVE_SIDE = 1000
"""Width and height of every picture in relative coordinates, as in Qwen3-VL."""


def box_schema(picture: str, config: ToolsConfig) -> Schema:
    """Schema of a box that refers to `picture`."""
    unit = "pixels" if config.coordinates == "absolute" else f"units from 0 to {RELATIVE_SIDE} of the sides"
    return {
        "type": "array",
        "items": {"type": "number"},
        "minItems": 4,
        "maxItems": 4,
        "description": f"[x1, y1, x2, y2]: left, top, right and bottom of the region, in {unit} of {picture}.",
    }


def crop_of(box: Sequence[int | float], source: View, scene: Scene, config: ToolsConfig) -> Crop | WrongCall:
    """The crop for a box of finite numbers that refers to a shown picture."""
    height, width = shown_size(source, scene.full_size)
    high, wide = (height, width) if config.coordinates == "absolute" else (RELATIVE_SIDE, RELATIVE_SIDE)
    x1, y1, x2, y2 = box
    if not (0 <= x1 <= wide and 0 <= x2 <= wide and 0 <= y1 <= high and 0 <= y2 <= high):
        return WrongCall(reason=f"the box must lie inside the picture: x from 0 to {wide}, y from 0 to {high}")
    if not (x1 < x2 and y1 < y2):
        return WrongCall(reason="the box must not be empty: x1 < x2 and y1 < y2")
    whole = region(source, scene.full_size)
    across = Fraction(whole.right - whole.left, wide)
    down = Fraction(whole.bottom - whole.top, high)
    left, right = (whole.left + Fraction(x) * across for x in (x1, x2))
    top, bottom = (whole.top + Fraction(y) * down for y in (y1, y2))
    longer, shorter = max(right - left, bottom - top), min(right - left, bottom - top)
    if longer > config.max_side_ratio * shorter:
        return WrongCall(reason=f"the longer side of the box must be at most {config.max_side_ratio:g} times the other")
    side = scene.token_side
    crop = Crop(
        left=math.floor(left / side) * side,
        top=math.floor(top / side) * side,
        right=math.ceil(right / side) * side,
        bottom=math.ceil(bottom / side) * side,
    )
    if min(crop.right - crop.left, crop.bottom - crop.top) < config.min_box_side * side:
        least = config.min_box_side * side * wide // (whole.right - whole.left)
        return WrongCall(reason=f"each side of the box must have about {least} units or more")
    return crop
