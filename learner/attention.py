"""Attention of packed families: one sequence without padding, in which remainders attend to what they share.

A sequence is made of families (`learner.family`): a beginning of P tokens, then the remainders of its rows. A beginning
attends causally to itself, a remainder to the whole beginning and causally to itself. The function is registered with
transformers, whose layers run unchanged and hand the segments on as a keyword.

Legend: P shared tokens of a family, T tokens of the sequence, A attention heads, H key and value heads, D width of a
head, F keys of all segments (those of a beginning once per remainder); B segments of a padded batch, Q their queries
and K their keys with padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import AttentionInterface

PACKED = "packed_families"
"""Name of the attention function in transformers' registry."""
Kernel = Literal["varlen", "padded"]
PADDED_AREA = 1.4
"""Most queries times keys of a padded batch over those of its segments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VarlenSegments:
    """For flash attention: segments of queries, each with its own list of keys, masked causally from the end."""

    query_starts: Tensor
    """int32 [segments + 1]"""
    key_starts: Tensor
    """int32 [segments + 1] into the F keys."""
    key_at_F: Tensor
    longest_query: int
    longest_keys: int

    def to(self, device: torch.device) -> VarlenSegments:
        return replace(
            self,
            query_starts=self.query_starts.to(device),
            key_starts=self.key_starts.to(device),
            key_at_F=self.key_at_F.to(device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedBatch:
    """For scaled-dot-product attention: segments of about the same size, padded in front."""

    query_at_BQ: Tensor
    key_at_BK: Tensor
    sees_B1QK: Tensor
    """bool. A padding query sees everything, so that its softmax is finite; nothing reads it."""

    def to(self, device: torch.device) -> PaddedBatch:
        return PaddedBatch(
            query_at_BQ=self.query_at_BQ.to(device),
            key_at_BK=self.key_at_BK.to(device),
            sees_B1QK=self.sees_B1QK.to(device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedSegments:
    batches: tuple[PaddedBatch, ...]
    attended_at_T: Tensor
    """Where each token is among the B * Q queries of all batches."""

    def to(self, device: torch.device) -> PaddedSegments:
        return PaddedSegments(
            batches=tuple(batch.to(device) for batch in self.batches), attended_at_T=self.attended_at_T.to(device)
        )


Segments = VarlenSegments | PaddedSegments
FamilyLengths = tuple[int, Sequence[int]]
"""(P, length of each remainder)"""


class _Segment(NamedTuple):
    """Consecutive queries and their keys; the last query sees all keys, each one before it one fewer."""

    start: int
    num_queries: int
    key_at: NDArray[np.int64]


def choose_kernel(device_type: str, dtype: torch.dtype) -> Kernel:
    """Flash attention has no float32 and no CPU."""
    return "varlen" if device_type == "cuda" and dtype in (torch.bfloat16, torch.float16) else "padded"


def segments_of(families: Sequence[FamilyLengths], kernel: Kernel) -> Segments:
    """Segments of a packed sequence, on the host. Those of length 0 are left out."""
    segments = list(_split(families))
    return varlen_segments(segments) if kernel == "varlen" else padded_segments(segments)


def _split(families: Sequence[FamilyLengths]) -> Iterator[_Segment]:
    start = 0
    for num_shared, lengths in families:
        shared = np.arange(start, start + num_shared)
        if num_shared:
            yield _Segment(start, num_shared, shared)
        start += num_shared
        for length in lengths:
            if length:
                yield _Segment(start, length, np.concatenate([shared, np.arange(start, start + length)]))
            start += length


def varlen_segments(segments: Sequence[_Segment]) -> VarlenSegments:
    num_queries = [segment.num_queries for segment in segments]
    num_keys = [len(segment.key_at) for segment in segments]
    return VarlenSegments(
        query_starts=_starts(num_queries),
        key_starts=_starts(num_keys),
        key_at_F=torch.from_numpy(np.concatenate([segment.key_at for segment in segments])),
        longest_query=max(num_queries),
        longest_keys=max(num_keys),
    )


def _starts(lengths: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int32))


def padded_segments(segments: Sequence[_Segment]) -> PaddedSegments:
    attended_at = np.empty(sum(segment.num_queries for segment in segments), np.int64)
    batches, before = [], 0
    for alike in _group_alike(segments):
        most_queries = max(segment.num_queries for segment in alike)
        most_keys = max(len(segment.key_at) for segment in alike)
        query_at = np.empty((len(alike), most_queries), np.int64)
        key_at = np.empty((len(alike), most_keys), np.int64)
        for b, (start, num_queries, keys) in enumerate(alike):
            query_at[b] = start
            query_at[b, most_queries - num_queries :] += np.arange(num_queries)
            key_at[b, : most_keys - len(keys)] = start
            key_at[b, most_keys - len(keys) :] = keys
            attended_at[start : start + num_queries] = before + (b + 1) * most_queries - num_queries
            attended_at[start : start + num_queries] += np.arange(num_queries)
        before += query_at.size
        padding_queries = most_queries - np.array([[segment.num_queries] for segment in alike])
        padding_keys = most_keys - np.array([[len(segment.key_at)] for segment in alike])
        causal_QK = np.tri(most_queries, most_keys, most_keys - most_queries, dtype=bool)
        is_key_BK = np.arange(most_keys) >= padding_keys
        is_padding_BQ = np.arange(most_queries) < padding_queries
        sees_BQK = causal_QK & is_key_BK[:, None, :] | is_padding_BQ[:, :, None]
        batches.append(
            PaddedBatch(
                query_at_BQ=torch.from_numpy(query_at),
                key_at_BK=torch.from_numpy(key_at),
                sees_B1QK=torch.from_numpy(sees_BQK[:, None]),
            )
        )
    return PaddedSegments(batches=tuple(batches), attended_at_T=torch.from_numpy(attended_at))


def _group_alike(segments: Sequence[_Segment]) -> list[list[_Segment]]:
    """Segments by size, as many at a time as padding adds little to their work."""
    grouped: list[list[_Segment]] = []
    area = longest_query = 0
    for segment in sorted(segments, key=lambda segment: (len(segment.key_at), segment.num_queries)):
        own = segment.num_queries * len(segment.key_at)
        longest_query = max(longest_query, segment.num_queries)
        padded = (len(grouped[-1]) + 1) * longest_query * len(segment.key_at) if grouped else 0
        if grouped and padded <= PADDED_AREA * (area + own):
            grouped[-1].append(segment)
            area += own
        else:
            grouped.append([segment])
            area, longest_query = own, segment.num_queries
    return grouped


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


def _varlen_attention(
    query_TAD: Tensor, key_THD: Tensor, value_THD: Tensor, segments: VarlenSegments, scale: float
) -> Tensor:
    # The operator behind `torch.nn.attention.varlen`: before PyTorch 2.13 that has no heads that share keys.
    attended_TAD: Tensor = torch.ops.aten._flash_attention_forward(
        query_TAD,
        _shared_rows(key_THD, segments.key_at_F),
        _shared_rows(value_THD, segments.key_at_F),
        segments.query_starts,
        segments.key_starts,
        segments.longest_query,
        segments.longest_keys,
        0.0,
        True,
        False,
        scale=scale,
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
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return plain
    query_TAD, key_THD, value_THD = (each[0].transpose(0, 1) for each in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    match segments:
        case VarlenSegments():
            attended_TAD = _varlen_attention(query_TAD, key_THD, value_THD, segments, scale)
        case PaddedSegments():
            attended_TAD = _padded_attention(query_TAD, key_THD, value_THD, segments, scale)
    return attended_TAD[None], None


def use_packed_attention(language_model: Any) -> None:
    """Make a language model of transformers attend by segments where it is given any."""
    AttentionInterface.register(PACKED, packed_attention)
    language_model.set_attn_implementation(PACKED)
