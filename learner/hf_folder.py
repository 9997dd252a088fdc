"""Exports weights to a folder that vLLM and transformers load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from learner.families.lookup import family_of_folder
from learner.hf_files import write_shards

COPIED_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
)
"""Files copied from the initial model's folder, where present."""


def save_hf(parameters: Iterable[tuple[str, Tensor]], folder: Path, *, source: Path) -> None:
    """Write a Hugging Face folder: these weights as safetensors, everything else copied from `source`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in COPIED_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    for stale in [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]:
        stale.unlink()
    family = family_of_folder(source)
    named = ((family.name_in_files(name), tensor) for name, tensor in parameters)
    weight_map = write_shards(named, folder, "model")
    shards = [folder / name for name in dict.fromkeys(weight_map.values())]
    if len(shards) == 1:
        shards[0].rename(folder / "model.safetensors")
        return
    total = sum(shard.stat().st_size for shard in shards)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
