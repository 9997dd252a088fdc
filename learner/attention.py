"""Attention of packed sequences, by segments without padding (`learner.batches.segments`).

The function is registered with transformers, whose layers run unchanged and hand the segments on as a keyword.

Legend: T tokens of the sequence, F keys of all segments, A attention heads, H key and value heads, D width of a head;
B segments of a padded batch, Q their queries and K their keys with padding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import AttentionInterface

from learner.batches.segments import PaddedSegments, Segments, VarlenSegments

PACKED = "packed_families"
"""Name of the attention function in transformers' registry."""


class _SharedRows(torch.autograd.Function):
    """Rows of a tensor by index, some of them many times: their gradients are added up in float32."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, at: Tensor) -> Tensor:
        ctx.save_for_backward(at)
        ctx.num_rows = len(rows)
        return rows.index_select(0, at)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (at,) = ctx.saved_tensors
        total = grad.new_zeros((ctx.num_rows, *grad.shape[1:]), dtype=torch.promote_types(grad.dtype, torch.float32))
        return total.index_add_(0, at, grad.to(total.dtype)).to(grad.dtype), None


def _shared_rows(rows: Tensor, at: Tensor) -> Tensor:
    gathered: Tensor = _SharedRows.apply(rows, at)  # type: ignore[no-untyped-call]
    return gathered


def varlen_attention(
    query_TAD: Tensor,
    key_FHD: Tensor,
    value_FHD: Tensor,
    queries: tuple[Tensor, int],
    keys: tuple[Tensor, int],
    *,
    scale: float,
    is_causal: bool,
) -> Tensor:
    """Flash attention [T, A, D] of segments, given as (int32 [segments + 1] where each starts, the longest's length).

    Causal from the end: the last query of a segment sees all of its keys.
    """
    # The operator behind `torch.nn.attention.varlen`: before PyTorch 2.13 that has no heads that share keys.
    attended_TAD: Tensor = torch.ops.aten._flash_attention_forward(
        query_TAD, key_FHD, value_FHD, queries[0], keys[0], queries[1], keys[1], 0.0, is_causal, False, scale=scale
    )[0]
    return attended_TAD


def _padded_attention(
    query_TAD: Tensor, key_THD: Tensor, value_THD: Tensor, segments: PaddedSegments, scale: float
) -> Tensor:
    attended = []
    for batch in segments.batches:
        query_BAQD, key_BHKD, value_BHKD = (
            _shared_rows(rows, at.flatten()).reshape(*at.shape, *rows.shape[1:]).transpose(1, 2)
            for rows, at in (
                (query_TAD, batch.query_at_BQ),
                (key_THD, batch.key_at_BK),
                (value_THD, batch.key_at_BK),
            )
        )
        attended_BAQD = F.scaled_dot_product_attention(
            query_BAQD, key_BHKD, value_BHKD, attn_mask=batch.sees_B1QK, scale=scale, enable_gqa=True
        )
        attended.append(attended_BAQD.transpose(1, 2).flatten(0, 1))
    return torch.cat(attended).index_select(0, segments.attended_at_T)


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    segments: Segments | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention [1, T, A, D] of query [1, A, T, D] over key and value [1, H, T, D] by segments.

    Without segments it is the library's own.
    """
    if segments is None:
        assert attention_mask is not None or query.shape[2] == key.shape[2], "a cache needs a mask"
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return plain
    query_TAD, key_THD, value_THD = (each[0].transpose(0, 1) for each in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    match segments:
        case VarlenSegments():
            attended_TAD = varlen_attention(
                query_TAD,
                _shared_rows(key_THD, segments.key_at_F),
                _shared_rows(value_THD, segments.key_at_F),
                (segments.query_starts, segments.longest_query),
                (segments.key_starts, segments.longest_keys),
                scale=scale,
                is_causal=True,
            )
        case PaddedSegments():
            attended_TAD = _padded_attention(query_TAD, key_THD, value_THD, segments, scale)
    return attended_TAD[None], None


def use_packed_attention(language_model: Any) -> None:
    """Make a language model of transformers attend by segments where it is given any."""
    AttentionInterface.register(PACKED, packed_attention)
    language_model.set_attn_implementation(PACKED)
