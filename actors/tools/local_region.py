"""`request_local_region`: a box of the first picture, at the full view's scale (AdaptVision, arXiv 2512.03794)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.tools.boxes import box_schema, crop_of
from actors.tools.tool import Declaration, Scene, Tool, WrongCall
from actors.views import View
from configs.tools import ToolsConfig

NAME = "request_local_region"


def _declare(config: ToolsConfig) -> Declaration:
    box = box_schema("the first picture you were shown", config)
    return Declaration(
        description="Shows one region of the picture at full resolution, twice as wide and twice as high as in the "
        "first picture you were shown. Call it when the details needed for the answer lie in one place; the smaller "
        "the region, the less it costs.",
        parameters={"type": "object", "properties": {"bbox_2d": box}, "required": ["bbox_2d"]},
    )


def _show(scene: Scene, arguments: Mapping[str, Any], config: ToolsConfig) -> View | WrongCall:
    return crop_of(arguments["bbox_2d"], scene.shown[0], scene, config)


LOCAL_REGION = Tool(
    name=NAME,
    declare=_declare,
    show=_show,
    max_calls=None,
    shows="region",
    followup="Here is the region at full resolution.",
)
