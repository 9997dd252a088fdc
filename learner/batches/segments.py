"""Which tokens of a packed sequence attend to which, as tensors for two attention kernels.

A sequence is made of families (`learner.batches.family`): a beginning of P tokens, then the remainders of its rows. A
beginning attends causally to itself, a remainder to the whole beginning and causally to itself.

Legend: P shared tokens of a family, T tokens of the sequence, F keys of all segments (those of a beginning once per
remainder); B segments of a padded batch, Q their queries and K their keys with padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
