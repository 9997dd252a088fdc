"""Settings of the tools that an episode offers (`rollout.tools`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from configs.require import require


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolsConfig:
    """The tools that a policy may call; docs/tools.md."""

    names: tuple[str, ...] = ("resize_image",)
    """Tools on offer: resize_image (the full view, as in the paper), request_local_region (a box of the first picture),
    image_zoom_in_tool (a box of any picture shown so far)."""
    max_turns: int = 2
    """Maximum turns of an episode, the answer included: one more than its tool calls and refused calls."""
    coordinates: Literal["absolute", "relative"] = "absolute"
    """Coordinates of boxes: pixels of the picture that a box refers to, or 0 to 1000 of its width and height."""
    on_wrong_call: Literal["malformed", "reply"] = "malformed"
    """What follows a call that the rules refuse: the end of the episode, or a turn that tells the policy why."""
    max_calls: dict[str, int] = field(default_factory=dict)
    """Maximum calls per episode by tool, such as {request_local_region: 2}; others have their own: resize_image 1."""
    max_side_ratio: float = 50.0
    """Maximum ratio of a box's longer side to its shorter one."""
    min_box_side: int = 1
    """Minimum visual tokens on each side of a crop; a smaller box is refused."""

    def __post_init__(self) -> None:
        names = list(self.names)
        require(bool(names), "rollout.tools.names", names, "must name a tool; for none, set rollout.mode=general")
        require(len(set(names)) == len(names), "rollout.tools.names", names, "must name each tool once")
        require(2 <= self.max_turns <= 64, "rollout.tools.max_turns", self.max_turns, "must be from 2 to 64")
        for name, most in self.max_calls.items():
            require(name in names, "rollout.tools.max_calls", name, f"must be a tool of rollout.tools.names={names}")
            require(most >= 1, f"rollout.tools.max_calls.{name}", most, "must be at least 1")
        ratio, side = self.max_side_ratio, self.min_box_side
        require(1 <= ratio <= 100, "rollout.tools.max_side_ratio", ratio, "must be from 1 to 100")
        require(side >= 1, "rollout.tools.min_box_side", side, "must be at least 1")
