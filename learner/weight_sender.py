"""The policy's weights on their way out: to the rollout engines, and to a folder that vLLM and transformers load.

Names are those of the Hugging Face checkpoints, whatever the library calls the parameters in memory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.engine.weight_receiver import TensorSpec, WeightManifest, bytes_digest
from learner.shards import write_shards

RENAMED_PREFIXES = (("model.visual.", "visual."), ("model.language_model.", "model."))
"""Of a parameter in memory, and in the checkpoint."""
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
"""What stays as it was in the initial model's folder; a folder has some of them."""


def checkpoint_name(name: str) -> str:
    """Name in a Hugging Face checkpoint of a parameter of Qwen2_5_VLForConditionalGeneration."""
    for prefix, renamed in RENAMED_PREFIXES:
        if name.startswith(prefix):
            return renamed + name.removeprefix(prefix)
    return name


def raw_bytes(tensor: Tensor) -> NDArray[np.uint8]:
    """The bytes [num_bytes] of a tensor, whatever its dtype (NumPy has no bfloat16)."""
    flat = tensor.detach().contiguous().reshape(-1).cpu().view(torch.uint8)
    content: NDArray[np.uint8] = flat.numpy()
    return content


def pack_weights(
    parameters: Iterable[tuple[str, Tensor]], *, version: int, bucket_bytes: int
) -> tuple[WeightManifest, list[NDArray[np.uint8]]]:
    """Copy parameters into buckets uint8 [num_bytes] of about `bucket_bytes`, and describe them.

    A bucket is closed once it holds `bucket_bytes`; a tensor never spans two.
    """
    specs: list[TensorSpec] = []
    buckets: list[NDArray[np.uint8]] = []
    waiting: list[NDArray[np.uint8]] = []
    offset = 0
    for name, tensor in parameters:
        content = raw_bytes(tensor)
        specs.append(
            TensorSpec(
                name=checkpoint_name(name),
                dtype=str(tensor.dtype).removeprefix("torch."),
                shape=tuple(tensor.shape),
                bucket=len(buckets),
                offset=offset,
                num_bytes=content.nbytes,
                digest=bytes_digest(content.data),
            )
        )
        # On the CPU these are the parameter's own bytes, and what ZeRO-3 gathered is released at the next turn.
        waiting.append(content if tensor.is_cuda else content.copy())
        offset += content.nbytes
        if offset >= bucket_bytes:
            buckets.append(np.concatenate(waiting))
            waiting, offset = [], 0
    if waiting:
        buckets.append(np.concatenate(waiting))
    return WeightManifest(version=version, tensors=tuple(specs)), buckets


def save_hf(parameters: Iterable[tuple[str, Tensor]], folder: Path, *, source: Path) -> None:
    """Write a Hugging Face folder: these weights as safetensors, everything else copied from `source`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in COPIED_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    for stale in [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]:
        stale.unlink()
    named = ((checkpoint_name(name), tensor) for name, tensor in parameters)
    weight_map = write_shards(named, folder, "model")
    shards = [folder / name for name in dict.fromkeys(weight_map.values())]
    if len(shards) == 1:
        shards[0].rename(folder / "model.safetensors")
        return
    total = sum(shard.stat().st_size for shard in shards)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
