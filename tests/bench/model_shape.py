"""Writes a model folder of a published shape without weights: config.json of that size, the tiny model's tokenizer.

    uv run python -m tests.bench.model_shape 3b /tmp/qwen-3b-shape

For speed and memory figures with `model.load=random`. The numbers are those of the published config.json files
(Qwen2.5-VL-3B-Instruct and -7B-Instruct), `mini` is for CPUs; special token ids are the tiny tokenizer's.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from cluster.planning.models import TEXT as PUBLISHED_TEXT
from cluster.planning.models import VISION

TINY = Path(__file__).resolve().parents[2] / "configs" / "tiny"
TEXT = {
    "mini": {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 32000,
    },
    **PUBLISHED_TEXT,
}

NUM_VISION_LAYERS = {"mini": 2}
"""Where it is not the published number."""


def write_shape(size: str, folder: Path, *, num_layers: int | None = None) -> None:
    """Write the folder, with fewer layers of text and vision if so asked; an existing one is replaced."""
    text, vision = dict(TEXT[size]), dict(VISION)
    if num_layers is not None:
        text["num_hidden_layers"] = num_layers
    if depth := num_layers or NUM_VISION_LAYERS.get(size):
        vision.update(depth=depth, fullatt_block_indexes=[depth - 1])
    config = json.loads((TINY / "config.json").read_text())
    config["tie_word_embeddings"] = size != "7b"
    rope = {"type": "mrope", "mrope_section": [16, 24, 24], "rope_type": "default", "rope_theta": 1e6}
    layers = {"layer_types": ["full_attention"] * text["num_hidden_layers"], "max_position_embeddings": 32768}
    config["text_config"].update(text, **layers, tie_word_embeddings=size != "7b", initializer_range=0.02)
    for name in ("rope_scaling", "rope_parameters"):
        if name in config["text_config"]:
            config["text_config"][name] = rope
    config["vision_config"].update(vision, out_hidden_size=text["hidden_size"], initializer_range=0.02)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json", "README.md"))
    (folder / "config.json").write_text(json.dumps(config, indent=1))


if __name__ == "__main__":
    write_shape(sys.argv[1], Path(sys.argv[2]))
    print(sys.argv[2])
