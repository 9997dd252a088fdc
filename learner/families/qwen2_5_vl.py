"""Qwen2.5-VL: names, sizes and published models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.config_json import text_settings, vision_settings
from actors.images import CLIP_MEAN, CLIP_STD
from learner.families.family import ModelFamily, TinyMember
from learner.memory import ModelShape, Projections, Stack

KEPT_WIDTHS, KEPT_WIDTHS_OF_BLOCK, KEPT_INTERMEDIATES = 8, 14, 3
"""Values that a layer of the language model, or a block of the tower, keeps per token for its backward pass: in widths
(its input, the sum in its middle, both normalised, queries, attended values, and keys and values by segment; a block
has as many keys and values as queries, and those before the rotation, too), and in intermediate widths (gate, values,
product)."""

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
    "spatial_merge_size": 2,
    "in_channels": 3,
    "temporal_patch_size": 2,
    "patch_size": 14,
}
"""Their vision tower."""
ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}


def read_shape(config: Mapping[str, Any]) -> ModelShape:
    """The shape in a config.json of either layout."""
    given, vision = text_settings(config), vision_settings(config)
    width, inner = given["hidden_size"], given["intermediate_size"]
    heads = given["num_attention_heads"]
    keys = width // heads * (given.get("num_key_value_heads") or heads)
    attention = 2 * width * width + width + 2 * (width * keys + keys)
    text = Stack(
        depth=given["num_hidden_layers"],
        width=width,
        query_width=width,
        attention=Projections(count=4, sides=6 * width + 2 * keys),
        mlp=Projections(count=3, sides=3 * (width + inner)),
        layer=attention + 3 * width * inner + 2 * width,
        kept=KEPT_WIDTHS * width + KEPT_INTERMEDIATES * inner,
    )
    tower, hidden = _tower(vision), vision["hidden_size"]
    unit = vision["spatial_merge_size"] ** 2 * hidden
    merger = hidden + unit * unit + unit + unit * width + width
    patch = vision["in_channels"] * vision["temporal_patch_size"] * vision["patch_size"] ** 2 * hidden
    num_tables = 1 if given.get("tie_word_embeddings") else 2
    return ModelShape(
        text=text,
        vision=tower,
        vocabulary=given["vocab_size"],
        kv_width=keys,
        num_features=1,
        window_patches=(vision["window_size"] // vision["patch_size"]) ** 2,
        whole_share=len(vision["fullatt_block_indexes"]) / vision["depth"],
        num_parameters=text.depth * text.layer
        + width
        + num_tables * given["vocab_size"] * width
        + tower.depth * tower.layer
        + merger
        + patch,
    )


def _tower(vision: Mapping[str, Any]) -> Stack:
    width, inner = vision["hidden_size"], vision["intermediate_size"]
    return Stack(
        depth=vision["depth"],
        width=width,
        query_width=width,
        attention=Projections(count=2, sides=6 * width),
        mlp=Projections(count=3, sides=3 * (width + inner)),
        layer=4 * width * width + 4 * width + 3 * width * inner + 2 * inner + width + 2 * width,
        kept=KEPT_WIDTHS_OF_BLOCK * width + KEPT_INTERMEDIATES * inner,
    )


def _published(size: str) -> dict[str, Any]:
    text = TEXT[size]
    return {
        "model_type": "qwen2_5_vl",
        "text_config": {**text, "rope_parameters": ROPE},
        "vision_config": {**VISION, "out_hidden_size": text["hidden_size"]},
        "tie_word_embeddings": size == "3b",
    }


QWEN2_5_VL = ModelFamily(
    model_type="qwen2_5_vl",
    architecture="Qwen2_5_VLForConditionalGeneration",
    title="Qwen2.5-VL",
    processor="Qwen2_5_VLProcessor",
    image_mean=CLIP_MEAN,
    image_std=CLIP_STD,
    renamed_prefixes=(("model.visual.", "visual."), ("model.language_model.", "model.")),
    read_shape=read_shape,
    published={f"qwen2.5-vl-{size}": _published(size) for size in TEXT},
    coordinates="absolute",
    tiny=TinyMember(
        text={"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}},
        vision={"fullatt_block_indexes": [1, 3], "window_size": 112},
    ),
)
