"""Layers that compute what the library's do, by kernels that a GPU is fast at. Weights and their names are unchanged.

Legend: P patches, I width inside an MLP, J the same rounded up.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

ALIGNMENT = 64
"""Widths inside an MLP are padded to a multiple of this. Where rows of bfloat16 are no multiple of 16 bytes long, as
with the 3,420 values inside the published towers' MLPs, cuBLAS falls back to kernels of an older generation of GPUs."""


class FusedRMSNorm(nn.Module):
    """RMSNorm as one kernel, which rounds once where the library's chain of six rounds twice."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)


class WideLinear(nn.Linear):
    """[P, ...] -> [P, J]: the outputs I of a linear layer, followed by zeros."""

    def forward(self, input: Tensor) -> Tensor:
        missing = -self.out_features % ALIGNMENT
        bias = None if self.bias is None else F.pad(self.bias, (0, missing))
        return F.linear(input, F.pad(self.weight, (0, 0, 0, missing)), bias)


class NarrowLinear(nn.Linear):
    """[P, J] -> [P, ...]: a linear layer of the first I inputs, whose further inputs are zero."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, F.pad(self.weight, (0, -self.in_features % ALIGNMENT)), self.bias)


def use_fused_layers(model: Any) -> None:
    """Swap the classes of a model's norms, and of MLPs whose inner width is not aligned."""
    for module in model.modules():
        if isinstance(module, qwen.Qwen2_5_VLRMSNorm):
            module.__class__ = FusedRMSNorm
        elif isinstance(module, qwen.Qwen2_5_VLMLP | qwen.Qwen2MLP) and module.down_proj.in_features % ALIGNMENT:
            assert torch.all(module.act_fn(torch.zeros(1)) == 0), "padding stays zero"
            module.gate_proj.__class__ = module.up_proj.__class__ = WideLinear
            module.down_proj.__class__ = NarrowLinear
