"""Exports the policy of a checkpoint to a Hugging Face folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from torch import Tensor

from actors.errors import CheckpointError
from configs.learner import LoraConfig
from learner.families.lookup import family_of_folder
from learner.hf_folder import save_hf
from learner.lora.merging import with_adapters
from learner.state.checkpoint import CheckpointFolder
from learner.state.share_files import SavedLearner

POLICY = "model."
"""Prefix of the policy's parameters in a learner's state."""
VISION = "model.visual."
"""Prefix of the vision tower's parameters in the policy."""


def export_checkpoint(
    checkpoints: CheckpointFolder,
    name: str,
    out: Path,
    *,
    model: Path,
    dtype: Literal["float32", "bfloat16"],
    lora: LoraConfig | None = None,
) -> int:
    """Write the policy of a verified checkpoint into `out`, atomically; returns its optimizer step.

    Where adapters were trained, they are added to the initial model's weights, and written to `out/adapter`, too.

    Args:
        model: folder of the initial model, for everything but what was trained.
        dtype: that the policy was trained in; checkpoints hold float32.
        lora: of the run.

    Raises:
        CheckpointError: it has no learner state, or adapters were trained beside weights that no folder has.
    """
    saved = SavedLearner.open(checkpoints.storage, name)
    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    partial = out.with_name(f".tmp-{out.name}")
    shutil.rmtree(partial, ignore_errors=True)
    if lora is not None and lora.rank:
        _save_with_adapters(saved, model, kind, lora, partial)
    else:
        save_hf(_weights(saved, model, kind), partial, source=model)
    shutil.rmtree(out, ignore_errors=True)
    os.replace(partial, out)
    return saved.counters.optimizer_step


def _save_with_adapters(saved: SavedLearner, model: Path, dtype: torch.dtype, lora: LoraConfig, folder: Path) -> None:
    """The same sums as the learner's own, of adapters in the precision of its forward pass."""
    from learner.lora.adapters import save_adapter  # imports PEFT, which takes seconds

    adapters = {name: torch.from_numpy(array).to(dtype) for name, array in saved.weights()}
    if not any(model.glob("*.safetensors")):
        raise CheckpointError(
            f"the checkpoint holds the adapters of learner.lora.rank={lora.rank} alone, and model.path={str(model)!r} "
            "has no weights that they belong to: put the initial model's files there"
        )
    named = family_of_folder(model).name_in_files
    in_files = {named(name.removeprefix(POLICY)): adapter for name, adapter in adapters.items()}
    save_hf(with_adapters(_initial_weights(model, dtype), in_files, lora.scale), folder, source=model)
    save_adapter(adapters, folder, lora, base=str(model))


def _weights(saved: SavedLearner, model: Path, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The weights that were trained, then those of a frozen vision tower, which only the initial model has."""
    for name, array in saved.weights():
        yield name.removeprefix(POLICY), torch.from_numpy(array).to(dtype)
    if any(name.startswith(f"{POLICY}{VISION}") for name in saved.shapes):
        return
    prefix = family_of_folder(model).name_in_files(VISION)
    for name, weight in _initial_weights(model, dtype):
        if name.startswith(prefix):
            yield name, weight


def _initial_weights(model: Path, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The weights in a model's folder, by the names that its family has in files."""
    family = family_of_folder(model)
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                yield family.name_in_files(name), tensors.get_tensor(name).to(dtype)
