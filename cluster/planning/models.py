"""The policy's config.json: from its folder, or the published numbers of a model that is not on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.config_json import read_config_json
from configs.paths import find_folder

TEXT: Mapping[str, Mapping[str, int]] = {
    "3b": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
}
"""Language models of Qwen2.5-VL-3B-Instruct and -7B-Instruct, as their config.json files say."""
VISION: Mapping[str, Any] = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "window_size": 112,
}
"""Their vision tower."""
PATCHES = {"spatial_merge_size": 2, "in_channels": 3, "temporal_patch_size": 2, "patch_size": 14}


def published_model(size: str) -> dict[str, Any]:
    """config.json of a published size, as far as memory and speed depend on it."""
    return {
        "model_type": "qwen2_5_vl",
        "text_config": dict(TEXT[size]),
        "vision_config": {**VISION, **PATCHES},
        "tie_word_embeddings": size == "3b",
    }


def find_model(path: str) -> dict[str, Any]:
    """config.json of a model folder, or of a published model that the path names.

    Raises:
        ValueError: neither, or another family than Qwen2.5-VL.
    """
    folder = Path(find_folder(path, Path.cwd()))
    try:
        model = read_config_json(folder)
    except OSError:
        name = path.lower().replace("_", "-")
        size = next((size for size in TEXT if f"qwen2.5-vl-{size}" in name), None)
        if size is None:
            raise ValueError(
                f"model.path={path!r} is not on this machine, and its name is not Qwen2.5-VL-3B or -7B: give a folder "
                f"with config.json (its weights are not needed)"
            ) from None
        return published_model(size)
    if model.get("model_type") != "qwen2_5_vl":
        raise ValueError(f"{folder}/config.json is of another family than Qwen2.5-VL, for which nothing was measured")
    return model
