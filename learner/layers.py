"""Layers that compute what the library's do, by kernels that a GPU is fast at. Weights and their names are unchanged.

Legend: P patches, I width inside an MLP, J the same rounded up; T tokens, U of them read, W width of the language
model.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.activations import SiLUActivation
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb

from learner.fusing import fuse

ALIGNMENT = 64
"""Widths inside an MLP are padded to a multiple of this. Where rows of bfloat16 are no multiple of 16 bytes long, as
with the 3,420 values inside the published towers' MLPs, cuBLAS falls back to kernels of an older generation of GPUs."""


class FusedRMSNorm(nn.Module):
    """RMSNorm as one kernel, which rounds once where the library's chain of six rounds twice."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)


def gated(gate: Tensor, values: Tensor) -> Tensor:
    """SiLU of the gate times the values, [..., P, I] each."""
    return F.silu(gate) * values


def gated_gradients(gradient: Tensor, gate: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Of the gate and the values, given that of their product."""
    of_gate: Tensor = torch.ops.aten.silu_backward(gradient * values, gate)
    return of_gate, gradient * F.silu(gate)


fused_gated = fuse(gated, tokens_at=(-2, -2))
fused_gated_gradients = fuse(gated_gradients, tokens_at=(-2, -2, -2))
fused_rotary = fuse(apply_rotary_pos_emb, tokens_at=(-2, -2, -2, -2))


class Gated(torch.autograd.Function):
    """`gated`, of which the gate and the values are kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(gate, values)
        return fused_gated(gate, values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return fused_gated_gradients(gradient, *ctx.saved_tensors)


class Rotary(torch.autograd.Function):
    """The library's rotation of queries and keys [1, A, T, D]; its backward pass is the rotation back."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cos_1TD: Tensor, sin_1TD: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos_1TD, sin_1TD)
        rotated: tuple[Tensor, Tensor] = fused_rotary(query, key, cos_1TD, sin_1TD)
        return rotated

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, None, None]:
        cos_1TD, sin_1TD = ctx.saved_tensors
        return *fused_rotary(query, key, cos_1TD, -sin_1TD), None, None


def run_decoder_layer(self: Any, hidden_states: Tensor, *, read_at: Tensor | None = None, **options: Any) -> Tensor:
    """The library's layer of a language model, [1, T, W] -> [1, T, W].

    The last layer of a model keeps only the tokens `read_at` behind its attention, [1, U, W], if it is given: what it
    would make of the others nobody reads.
    """
    attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **options)
    hidden_states = hidden_states + attended
    if read_at is not None and self.self_attn.layer_idx == self.self_attn.config.num_hidden_layers - 1:
        hidden_states = hidden_states.index_select(1, read_at)
    made: Tensor = self.mlp(self.post_attention_layernorm(hidden_states))
    return hidden_states + made


class GatedMLP(nn.Module):
    """The library's MLP; of what is between its matrix products, only their results are kept for the backward pass."""

    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear

    def forward(self, hidden_state: Tensor) -> Tensor:
        product = Gated.apply(self.gate_proj(hidden_state), self.up_proj(hidden_state))  # type: ignore[no-untyped-call]
        output: Tensor = self.down_proj(product)
        return output


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


def use_fused_layers(model: Any, *, norms: tuple[type[Any], ...], gated_mlps: tuple[type[Any], ...]) -> None:
    """Swap these classes of a model's norms and MLPs."""
    for module in model.modules():
        if isinstance(module, norms):
            module.__class__ = FusedRMSNorm
        elif isinstance(module, gated_mlps):
            assert isinstance(module.act_fn, SiLUActivation | nn.SiLU), type(module.act_fn)
            module.__class__ = GatedMLP
            if module.down_proj.in_features % ALIGNMENT:
                module.gate_proj.__class__ = module.up_proj.__class__ = WideLinear
                module.down_proj.__class__ = NarrowLinear
