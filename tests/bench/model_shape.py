"""Writes a model folder of a published shape without weights: config.json of that size, the tiny model's tokenizer.

    uv run python -m tests.bench.model_shape qwen3-vl-4b /tmp/qwen3-4b-shape

For speed and memory figures with `model.load=random`. The numbers are those of the published config.json files
(`3b` and `7b` are Qwen2.5-VL's), `mini` is for CPUs; special token ids are the tiny tokenizer's.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from learner.families.lookup import FAMILIES, PUBLISHED
from learner.tiny.model import processor_settings

TINY = Path(__file__).resolve().parents[2] / "configs" / "tiny"
ALIASES = {"3b": "qwen2.5-vl-3b", "7b": "qwen2.5-vl-7b", "mini": "qwen2.5-vl-3b"}
MINI = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 32000,
}
NUM_MINI_BLOCKS = 2
TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


def write_shape(size: str, folder: Path, *, num_layers: int | None = None) -> None:
    """Write the folder, with fewer layers of text and vision if so asked; an existing one is replaced."""
    published, tiny = PUBLISHED[ALIASES.get(size, size)], json.loads((TINY / "config.json").read_text())
    family = FAMILIES[published["model_type"]]
    text, vision = dict(published["text_config"]), dict(published["vision_config"])
    depth = num_layers
    if size == "mini":
        text, depth = text | MINI, NUM_MINI_BLOCKS
    if num_layers is not None:
        text["num_hidden_layers"] = num_layers
    if depth is not None:
        few = {"fullatt_block_indexes": [depth - 1], "deepstack_visual_indexes": list(range(min(3, depth)))}
        vision |= {"depth": depth} | {name: value for name, value in few.items() if name in vision}
    config = {
        **{name: tiny[name] for name in TOKENS},
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "tie_word_embeddings": published["tie_word_embeddings"],
        "text_config": {
            **text,
            **{name: tiny["text_config"][name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
            "max_position_embeddings": 32768,
            "tie_word_embeddings": published["tie_word_embeddings"],
            "initializer_range": 0.02,
        },
        "vision_config": {**vision, "out_hidden_size": text["hidden_size"], "initializer_range": 0.02},
    }
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json", "README.md"))
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    processor = processor_settings(family, patch_size=vision["patch_size"])
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=1))


if __name__ == "__main__":
    write_shape(sys.argv[1], Path(sys.argv[2]))
    print(sys.argv[2])
