"""Exports the policy of a checkpoint to a Hugging Face folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

import torch

from learner.checkpoint import CheckpointFolder
from learner.hf_folder import save_hf
from learner.share_files import SavedLearner

POLICY = "model."
"""Prefix of the policy's parameters in a learner's state."""


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
    weights = ((name.removeprefix(POLICY), torch.from_numpy(array).to(kind)) for name, array in saved.weights())
    partial = out.with_name(f".tmp-{out.name}")
    shutil.rmtree(partial, ignore_errors=True)
    save_hf(weights, partial, source=model)
    shutil.rmtree(out, ignore_errors=True)
    os.replace(partial, out)
    return saved.counters.optimizer_step
