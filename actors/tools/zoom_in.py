"""`image_zoom_in_tool`: a box of any picture shown so far (DeepEyes, arXiv 2505.14362; `img_idx` as in Qwen3-VL).

A picture shown earlier may itself be a crop, as with the `source` of Mini-o3 (arXiv 2509.07969).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.tools.boxes import box_schema, crop_of
from actors.tools.tool import Declaration, Scene, Tool, WrongCall
from actors.views import View
from configs.tools import ToolsConfig

NAME = "image_zoom_in_tool"
MAX_LABEL = 200
"""Characters of a label."""


def _declare(config: ToolsConfig) -> Declaration:
    properties = {
        "bbox_2d": box_schema("the picture that img_idx names", config),
        "label": {"type": "string", "maxLength": MAX_LABEL, "description": "What the region holds, in a few words."},
        "img_idx": {
            "type": "integer",
            "minimum": 0,
            "description": "Number of the picture that the region is in, among those shown so far; the first is 0.",
        },
    }
    return Declaration(
        description="Shows one region of a picture at full resolution. The region may lie in the first picture or in "
        "one that an earlier call showed.",
        parameters={"type": "object", "properties": properties, "required": [*properties]},
    )


def _show(scene: Scene, arguments: Mapping[str, Any], config: ToolsConfig) -> View | WrongCall:
    number = arguments["img_idx"]
    if number >= len(scene.shown):
        return WrongCall(reason=f"img_idx must be at most {len(scene.shown) - 1}: the first picture is 0")
    return crop_of(arguments["bbox_2d"], scene.shown[number], scene, config)


ZOOM_IN = Tool(
    name=NAME,
    declare=_declare,
    show=_show,
    max_calls=None,
    shows="region",
    followup="Here is the region at full resolution.",
)
