"""Exports the policy of a checkpoint as a Hugging Face folder, without starting a learner."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

import torch

from learner.hf_folder import save_hf
from learner.state import read_counters, read_tensors

WEIGHT = "weight/model."
"""Prefix of the policy's weights in a learner's state (`LearnerEngine.state`)."""


def export_checkpoint(checkpoint: Path, out: Path, *, model: Path, dtype: Literal["float32", "bfloat16"]) -> int:
    """Write the policy of a verified checkpoint into `out`, atomically; returns its optimizer step.

    Args:
        model: folder of the initial model, for everything but the weights.
        dtype: that the policy was trained in; checkpoints hold float32.

    Raises:
        CheckpointError: it has no learner state.
    """
    counters = read_counters(checkpoint)
    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    weights = ((key.removeprefix(WEIGHT), tensor.to(kind)) for key, tensor in read_tensors(checkpoint, WEIGHT))
    partial = out.with_name(f".tmp-{out.name}")
    shutil.rmtree(partial, ignore_errors=True)
    save_hf(weights, partial, source=model)
    shutil.rmtree(out, ignore_errors=True)
    os.replace(partial, out)
    return counters.optimizer_step
