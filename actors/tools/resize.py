"""`resize_image`: the full view of the picture (VisionThink, section 3)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from actors.tools.tool import Declaration, Scene, Tool
from actors.views import View
from configs.tools import ToolsConfig

NAME = "resize_image"
RESIZE_CALL = json.dumps({"name": NAME, "arguments": {"action": "resize"}})
"""The one valid call, as `json.dumps` writes it."""


def _declare(config: ToolsConfig) -> Declaration:
    action = {"type": "string", "enum": ["resize"], "description": "Always resize."}
    return Declaration(
        description="Shows the same picture at its full resolution, twice as wide and twice as high. Call it only when "
        "the details needed for the answer cannot be made out in the picture you were shown.",
        parameters={"type": "object", "properties": {"action": action}, "required": ["action"]},
    )


def _show(scene: Scene, arguments: Mapping[str, Any], config: ToolsConfig) -> View:
    return "full"


RESIZE = Tool(
    name=NAME,
    declare=_declare,
    show=_show,
    max_calls=1,
    shows="full",
    followup="Here is the picture at full resolution.",
)
