"""Tensors inside a bucket of raw bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from actors.weights.layout import Slot

WORD_BYTES = 8
CACHED_BYTES = 2 << 20
"""A CPU copies tensors in parts of this size, which are still in its cache when their digest is computed."""


def slot_tensor(bucket: Tensor, slot: Slot) -> Tensor:
    """A tensor in its bucket, uint8 [num_bytes]: a view."""
    content = bucket[slot.offset : slot.offset + slot.tensor.num_bytes]
    return content.view(getattr(torch, slot.tensor.dtype)).view(slot.tensor.shape)


def as_words(tensors: Sequence[Tensor]) -> list[Tensor] | None:
    """The memory of contiguous tensors as words of 64 bits each, int64 [words]; None where one is no whole number of
    them. A GPU copies many tensors in one call the faster, the wider their elements are."""
    if any(tensor.data_ptr() % WORD_BYTES or tensor.nbytes % WORD_BYTES for tensor in tensors):
        return None
    return [tensor.reshape(-1).view(torch.int64) for tensor in tensors]


def parts(target: Tensor, source: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both tensors in parts that a CPU copies one after the other; whole where the target is on a GPU."""
    if target.device.type != "cpu":
        return iter([(target, source)])
    size = CACHED_BYTES // target.itemsize
    return zip(torch.split(target.view(-1), size), torch.split(source.reshape(-1), size), strict=True)
