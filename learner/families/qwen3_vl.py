"""Qwen3-VL, its dense models: names, sizes and published models.

Against Qwen2.5-VL: heads of their own width with normalised queries and keys, positions interleaved by frequency, a
tower with learned positions that attends to whole pictures, and deep-stack features, which some of its blocks add to
the first layers of the language model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.config_json import text_settings, vision_settings
from learner.families.family import ModelFamily, TinyMember
from learner.memory import ModelShape, Projections, Stack

KEPT_WIDTHS, KEPT_QUERIES, KEPT_INTERMEDIATES = 6, 3, 3
"""Values that a layer of the language model keeps per token for its backward pass: in widths (its input, the sum in its
middle, both normalised, keys and values by segment), in widths of all queries (before they are normalised, rotated,
attended values), and in intermediate widths (gate, values, product)."""
KEPT_WIDTHS_OF_BLOCK, KEPT_INTERMEDIATES_OF_BLOCK = 14, 2
"""The same of a block of the tower, whose MLP has no gate."""
HALF = (0.5, 0.5, 0.5)

TEXT: Mapping[str, Mapping[str, int]] = {
    "2b": {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
    },
    "4b": {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "32b": {
        "hidden_size": 5120,
        "intermediate_size": 25600,
        "num_hidden_layers": 64,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}
"""Language models of Qwen3-VL-2B-Instruct to -32B-Instruct, as their config.json files say."""
SMALL_TOWER = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
LARGE_TOWER = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}
VISION: Mapping[str, Any] = {
    "num_heads": 16,
    "num_position_embeddings": 48**2,
    "hidden_act": "gelu_pytorch_tanh",
    "spatial_merge_size": 2,
    "in_channels": 3,
    "temporal_patch_size": 2,
    "patch_size": 16,
}
ROPE = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}


def read_shape(config: Mapping[str, Any]) -> ModelShape:
    """The shape in a config.json of either layout."""
    given, vision = text_settings(config), vision_settings(config)
    width, inner, head = given["hidden_size"], given["intermediate_size"], given["head_dim"]
    queries, keys = head * given["num_attention_heads"], head * given["num_key_value_heads"]
    text = Stack(
        depth=given["num_hidden_layers"],
        width=width,
        query_width=queries,
        attention=Projections(count=4, sides=4 * width + 2 * queries + 2 * keys),
        mlp=Projections(count=3, sides=3 * (width + inner)),
        layer=2 * width * (queries + keys) + 2 * head + 3 * width * inner + 2 * width,
        kept=KEPT_WIDTHS * width + KEPT_QUERIES * queries + KEPT_INTERMEDIATES * inner,
    )
    tower, hidden = _tower(vision), vision["hidden_size"]
    unit = vision["spatial_merge_size"] ** 2 * hidden
    merging, num_deep = unit * unit + unit + unit * width + width, len(vision["deepstack_visual_indexes"])
    patch = vision["in_channels"] * vision["temporal_patch_size"] * vision["patch_size"] ** 2 * hidden + hidden
    heads = 1 if given.get("tie_word_embeddings") else 2
    return ModelShape(
        text=text,
        vision=tower,
        vocabulary=given["vocab_size"],
        kv_width=keys,
        num_features=1 + num_deep,
        window_patches=0,
        whole_share=1.0,
        num_parameters=text.depth * text.layer
        + width
        + heads * given["vocab_size"] * width
        + tower.depth * tower.layer
        + merging
        + 2 * hidden
        + num_deep * (merging + 2 * unit)
        + vision["num_position_embeddings"] * hidden
        + patch,
    )


def _tower(vision: Mapping[str, Any]) -> Stack:
    width, inner = vision["hidden_size"], vision["intermediate_size"]
    return Stack(
        depth=vision["depth"],
        width=width,
        query_width=width,
        attention=Projections(count=2, sides=6 * width),
        mlp=Projections(count=2, sides=2 * (width + inner)),
        layer=4 * width * width + 4 * width + 2 * width * inner + inner + width + 4 * width,
        kept=KEPT_WIDTHS_OF_BLOCK * width + KEPT_INTERMEDIATES_OF_BLOCK * inner,
    )


def _published(size: str) -> dict[str, Any]:
    is_small = size in ("2b", "4b")
    text, tower = TEXT[size], SMALL_TOWER if is_small else LARGE_TOWER
    return {
        "model_type": "qwen3_vl",
        "text_config": {**text, "head_dim": 128, "vocab_size": 151936, "rope_parameters": ROPE},
        "vision_config": {**VISION, **tower, "out_hidden_size": text["hidden_size"]},
        "tie_word_embeddings": is_small,
    }


QWEN3_VL = ModelFamily(
    model_type="qwen3_vl",
    architecture="Qwen3VLForConditionalGeneration",
    title="Qwen3-VL",
    processor="Qwen3VLProcessor",
    image_mean=HALF,
    image_std=HALF,
    renamed_prefixes=(),
    read_shape=read_shape,
    published={f"qwen3-vl-{size}": _published(size) for size in TEXT},
    coordinates="relative",
    tiny=TinyMember(
        text={
            "head_dim": 32,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
        },
        # One place of the position grid per patch of a full view.
        vision={
            "hidden_act": "gelu_pytorch_tanh",
            "num_position_embeddings": 16**2,
            "deepstack_visual_indexes": [0, 2],
        },
    ),
)
