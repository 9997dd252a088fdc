"""What a question needs to see, where a data set records it: for reports, never for training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

from actors.views import Crop, Size, View

Need = Literal["quarter", "region", "full"]
"""The least that shows what the question is about: the quarter view alone, beside it one region, or the full view."""
NEEDS: tuple[Need, ...] = get_args(Need)
NEED_NAMES: Mapping[Need, str] = {"quarter": "quarter view", "region": "region", "full": "full view"}
"""For people."""
Region = tuple[float, float, float, float]
"""Left, top, right and bottom as fractions of the picture's sides."""


def need_of(view: View) -> Need:
    """The need that a view meets."""
    return "region" if isinstance(view, Crop) else view


def needed_view(need: Need | None, region: Region | None, full_size: Size, token_side: int) -> View | None:
    """The view that is needed, or None where that is not known. A region is enlarged to whole visual tokens of the full
    view."""
    if need != "region":
        return need
    if region is None:
        return None
    height, width = full_size
    left, top, right, bottom = (
        fraction * side / token_side for fraction, side in zip(region, (width, height) * 2, strict=True)
    )
    return Crop(
        left=math.floor(left) * token_side,
        top=math.floor(top) * token_side,
        right=math.ceil(right) * token_side,
        bottom=math.ceil(bottom) * token_side,
    )
