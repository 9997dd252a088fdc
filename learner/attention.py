"""Attention of packed families: one sequence without padding, in which remainders attend to what they share.

A sequence is made of families (`learner.family`): a beginning of P tokens, then the remainders of its rows. A beginning
attends causally to itself, a remainder to the whole beginning and causally to itself. The function is registered with
transformers, whose layers run unchanged and hand the segments on as a keyword.

Legend: T tokens of the sequence, A attention heads, H key and value heads, D width of a head, F keys of all segments
(those of a beginning once per remainder), R tokens of the longest remainder of a family, G its remainders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

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
class PaddedFamily:
    """For scaled-dot-product attention: the remainders of a family side by side, padded on the right."""

    start: int
    num_shared: int
    num_tokens: int
    padded_at_GR: Tensor | None
    """Where in the sequence each remainder's tokens are, padded with its last one; None without remainders."""
    kept_at: Tensor | None
    """[tokens of the remainders] where they are in [G * R]; None if nothing is padding."""

    def to(self, device: torch.device) -> PaddedFamily:
        moved = [None if each is None else each.to(device) for each in (self.padded_at_GR, self.kept_at)]
        return replace(self, padded_at_GR=moved[0], kept_at=moved[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedSegments:
    families: tuple[PaddedFamily, ...]

    def to(self, device: torch.device) -> PaddedSegments:
        return PaddedSegments(families=tuple(family.to(device) for family in self.families))


Segments = VarlenSegments | PaddedSegments
FamilyLengths = tuple[int, tuple[int, ...]]
"""(P, length of each remainder)"""


def choose_kernel(device_type: str, dtype: torch.dtype) -> Kernel:
    """Flash attention has no float32 and no CPU."""
    return "varlen" if device_type == "cuda" and dtype in (torch.bfloat16, torch.float16) else "padded"


def segments_of(families: Sequence[FamilyLengths], kernel: Kernel) -> Segments:
    """Segments of a packed sequence, on the host. Remainders of length 0 are left out."""
    given = [(num_shared, tuple(length for length in lengths if length)) for num_shared, lengths in families]
    return varlen_segments(given) if kernel == "varlen" else padded_segments(given)


def varlen_segments(families: Sequence[FamilyLengths]) -> VarlenSegments:
    queries, keys = [], []
    start = 0
    for num_shared, lengths in families:
        shared = np.arange(start, start + num_shared)
        if num_shared:
            queries.append(num_shared)
            keys.append(shared)
        start += num_shared
        for length in lengths:
            queries.append(length)
            keys.append(np.concatenate([shared, np.arange(start, start + length)]))
            start += length
    num_keys = [len(each) for each in keys]
    return VarlenSegments(
        query_starts=_starts(queries),
        key_starts=_starts(num_keys),
        key_at_F=torch.from_numpy(np.concatenate(keys)),
        longest_query=max(queries),
        longest_keys=max(num_keys),
    )


def _starts(lengths: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int32))


def padded_segments(families: Sequence[FamilyLengths]) -> PaddedSegments:
    found, start = [], 0
    for num_shared, lengths in families:
        num_tokens = num_shared + sum(lengths)
        padded, kept = _side_by_side(start + num_shared, lengths) if lengths else (None, None)
        found.append(
            PaddedFamily(start=start, num_shared=num_shared, num_tokens=num_tokens, padded_at_GR=padded, kept_at=kept)
        )
        start += num_tokens
    return PaddedSegments(families=tuple(found))


def _side_by_side(start: int, lengths: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    firsts, length_G1 = start + np.cumsum([0, *lengths])[:-1, None], np.array(lengths)[:, None]
    steps: NDArray[np.int64] = np.arange(max(lengths))
    padded = torch.from_numpy(firsts + np.minimum(steps, length_G1 - 1))
    is_token = steps < length_G1
    return padded, None if is_token.all() else torch.from_numpy(np.flatnonzero(is_token))


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
    for family in segments.families:
        shared = slice(family.start, family.start + family.num_shared)
        if family.num_shared:
            query, key, value = (each[None, shared].transpose(1, 2) for each in (query_TAD, key_THD, value_THD))
            alone_1APD = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
            attended.append(alone_1APD[0].transpose(0, 1))
        if family.padded_at_GR is not None:
            at, count = family.padded_at_GR, len(family.padded_at_GR)
            query_GARD = query_TAD[at].transpose(1, 2)
            keys, values = (
                torch.cat([each[shared].expand(count, -1, -1, -1), each[at]], dim=1).transpose(1, 2)
                for each in (key_THD, value_THD)
            )
            # What a padding query sees is never read, and no other token sees a padding key.
            sees = torch.ones(at.shape[1], keys.shape[2], dtype=torch.bool, device=at.device).tril_(family.num_shared)
            branched_GARD = F.scaled_dot_product_attention(
                query_GARD, keys, values, attn_mask=sees, scale=scale, enable_gqa=True
            )
            flat = branched_GARD.transpose(1, 2).flatten(0, 1)
            attended.append(flat if family.kept_at is None else flat[family.kept_at])
    return torch.cat(attended)


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
