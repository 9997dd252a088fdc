"""What a policy can be shown of a picture: the quarter view, the full view, or a crop of the full view.

A view is a value. Its text (`str(view)`) identifies it in records, cache keys and plans. Engine, learner and viewer
make its pixels with `cut_view` from the full view, which all of them hold: a crop is never cut from a larger original,
so that a learner needs no pixels that it does not have, and no view costs more than the full one.

Legend of shapes: H height, W width of the full view, h and w those of a view, in pixels; the last axis of 3 is RGB.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from actors.images import View_HW3

Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """A box of the full view, in its pixels; each side lies between two visual tokens."""

    left: int
    top: int
    right: int
    bottom: int

    def __post_init__(self) -> None:
        assert 0 <= self.left < self.right, self
        assert 0 <= self.top < self.bottom, self

    def __str__(self) -> str:
        return f"crop:{self.left},{self.top},{self.right},{self.bottom}"


View = Literal["quarter", "full"] | Crop

_CROP = re.compile(r"crop:(\d{1,6}),(\d{1,6}),(\d{1,6}),(\d{1,6})")


def parse_view(text: str) -> View:
    """The view that `str` wrote; ValueError for any other text."""
    match text:
        case "quarter":
            return "quarter"
        case "full":
            return "full"
    match = _CROP.fullmatch(text)
    if match is None:
        raise ValueError(f"view={text!r} is invalid: must be quarter, full or crop:LEFT,TOP,RIGHT,BOTTOM")
    left, top, right, bottom = map(int, match.groups())
    if left >= right or top >= bottom:
        raise ValueError(f"view={text!r} is invalid: must not be empty")
    return Crop(left=left, top=top, right=right, bottom=bottom)


def shown_size(view: View, full_size: Size) -> Size:
    """Size of what a view shows."""
    height, width = full_size
    match view:
        case "quarter":
            return height // 2, width // 2
        case "full":
            return full_size
        case Crop():
            return view.bottom - view.top, view.right - view.left


def region(view: View, full_size: Size) -> Crop:
    """The part of the full view that a view shows; all of it, at half the scale, for the quarter view."""
    return view if isinstance(view, Crop) else Crop(left=0, top=0, right=full_size[1], bottom=full_size[0])


def tokens_of(view: View, full_size: Size, token_side: int) -> int:
    """Visual tokens that a view costs."""
    height, width = shown_size(view, full_size)
    assert not any(side % token_side for side in (height, width)), (view, full_size, token_side)
    return (height // token_side) * (width // token_side)


def cut_view(full_HW3: View_HW3, view: View) -> View_HW3:
    """Pixels of a view, uint8 [h, w, 3]. A crop shares memory with the full view."""
    from actors.images import quarter_view  # NumPy and Pillow: only where pixels are made

    match view:
        case "quarter":
            return quarter_view(full_HW3)
        case "full":
            return full_HW3
        case Crop():
            height, width = full_HW3.shape[:2]
            assert view.bottom <= height, (view, full_HW3.shape)
            assert view.right <= width, (view, full_HW3.shape)
            return full_HW3[view.top : view.bottom, view.left : view.right]
