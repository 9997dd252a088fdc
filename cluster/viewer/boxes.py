"""Regions that a policy called for, as boxes on the pictures that it saw. Pure.

A call names a picture that was shown before: the first one, unless its arguments give another number. The recorded crop
is a part of the full view, so its place on that picture follows from the part that the picture shows and its scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.replies import parse_reply
from actors.tools.registry import TOOLS, ToolCall, toolbox_of
from actors.views import Crop, Size, View, parse_view, region, shown_size
from configs.tools import ToolsConfig

ANY_TOOL = toolbox_of(ToolsConfig(names=tuple(TOOLS)))
"""Reads the calls of every run: what a number of a picture means depends on no setting."""

BOTH_VIEWS: tuple[View, View] = ("quarter", "full")
"""Which a page shows of every sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A rectangle on a picture, in its pixels."""

    turn: int
    """Number of the turn that showed the region, from 1; 0 for a region that is needed, whoever saw it."""
    left: float
    top: float
    width: float
    height: float

    @property
    def about(self) -> str:
        """Such as `turn 2: x 28 to 56, y 0 to 56`."""
        right, bottom = self.left + self.width, self.top + self.height
        return f"turn {self.turn}: x {self.left:g} to {right:g}, y {self.top:g} to {bottom:g}"


def readable_view(text: str | None) -> View | None:
    """A recorded view; None for none, and for a text that is no view."""
    try:
        return parse_view(text or "")
    except ValueError:
        return None


def view_of(text: str | None, full_size: Size) -> View | None:
    """As `readable_view`; None for a crop of a larger picture as well."""
    view = readable_view(text)
    if view is None:
        return None
    whole = region(view, full_size)
    return view if whole.bottom <= full_size[0] and whole.right <= full_size[1] else None


def boxes_by_view(turns: Sequence[Mapping[str, Any]], full_size: Size) -> dict[str, list[Box]]:
    """Boxes by the text of the view that they are drawn on: what the call referred to, and the full view.

    Args:
        turns: as recorded.
        full_size: (height, width) of the full view.
    """
    found: dict[str, list[Box]] = {}
    shown: list[View | None] = []
    for number, turn in enumerate(turns, 1):
        view = view_of(turn["view"], full_size)
        if isinstance(view, Crop) and shown:
            source = _source(turns[number - 2]["text"], shown)
            for seen in dict.fromkeys((source, "full")):
                if seen is not None and (box := _place(view, seen, full_size, number)):
                    found.setdefault(str(seen), []).append(box)
        if turn["view"] is not None:
            shown.append(view)
    return found


def needed_boxes(needed: View | None, full_size: Size) -> dict[str, list[Box]]:
    """The region that is needed, by the text of the two views that it is drawn on; empty where no region is."""
    if not isinstance(needed, Crop):
        return {}
    placed = {seen: _place(needed, seen, full_size, 0) for seen in BOTH_VIEWS}
    return {str(seen): [box] for seen, box in placed.items() if box}


def _source(text: str, shown: Sequence[View | None]) -> View | None:
    """The picture that the call in a turn's text refers to; the first one where the call cannot be read any more."""
    call = parse_reply(text, ANY_TOOL)
    number = call.arguments.get("img_idx", 0) if isinstance(call, ToolCall) else 0
    return shown[number] if number < len(shown) else None


def _place(crop: Crop, seen: View, full_size: Size, turn: int) -> Box | None:
    """None where the picture does not show all of the crop."""
    whole, (height, width) = region(seen, full_size), shown_size(seen, full_size)
    across, down = width / (whole.right - whole.left), height / (whole.bottom - whole.top)
    left, top = (crop.left - whole.left) * across, (crop.top - whole.top) * down
    right, bottom = (crop.right - whole.left) * across, (crop.bottom - whole.top) * down
    if left < 0 or top < 0 or right > width or bottom > height:
        return None
    return Box(turn=turn, left=left, top=top, width=right - left, height=bottom - top)
