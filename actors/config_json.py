"""A model's config.json, in either of the layouts in which the Qwen-VL models are published.

Flat, as the Hub has Qwen2.5-VL: settings of the language model are at the top, and the tower's channels are `in_chans`.
Nested, as current versions of transformers save it: they stand in `text_config`, and the channels are `in_channels`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_config_json(folder: str | Path) -> dict[str, Any]:
    """The content of a model folder's config.json.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON object.
    """
    file = Path(folder) / "config.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}; copy the model again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is not a JSON object: copy the model again")
    return content


def text_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the language model, from either layout; `text_config` comes before the top."""
    return {**config, **_section(config, "text_config")}


def vision_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the vision tower by the names of the nested layout; empty for a model without one.

    Channels and frames of a patch have the defaults of the family where the file leaves them out.
    """
    vision = _section(config, "vision_config")
    defaults = {"in_channels": vision.get("in_chans", 3), "temporal_patch_size": 2}
    return {**defaults, **vision} if vision else {}


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}
