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

from learner.families.lookup import family_of_folder
from learner.hf_folder import save_hf
from learner.state.checkpoint import CheckpointFolder
from learner.state.share_files import SavedLearner

POLICY = "model."
"""Prefix of the policy's parameters in a learner's state."""
VISION = "model.visual."
"""Prefix of the vision tower's parameters in the policy."""


def export_checkpoint(
    checkpoints: CheckpointFolder, name: str, out: Path, *, model: Path, dtype: Literal["float32", "bfloat16"]
) -> int:
    """Write the policy of a verified checkpoint into `out`, atomically; returns its optimizer step.

    Args:
        model: folder of the initial model, for everything but the weights.
        dtype: that the policy was trained in; checkpoints hold float32.

    Raises:
        CheckpointError: it has no learner state.
    """
    saved = SavedLearner.open(checkpoints.storage, name)
    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    partial = out.with_name(f".tmp-{out.name}")
    shutil.rmtree(partial, ignore_errors=True)
    save_hf(_weights(saved, model, kind), partial, source=model)
    shutil.rmtree(out, ignore_errors=True)
    os.replace(partial, out)
    return saved.counters.optimizer_step


def _weights(saved: SavedLearner, model: Path, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The weights that were trained, then those of a frozen vision tower, which only the initial model has."""
    for name, array in saved.weights():
        yield name.removeprefix(POLICY), torch.from_numpy(array).to(dtype)
    if any(name.startswith(f"{POLICY}{VISION}") for name in saved.shapes):
        return
    prefix = family_of_folder(model).name_in_files(VISION)
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                if name.startswith(prefix):
                    yield name, tensors.get_tensor(name).to(dtype)
