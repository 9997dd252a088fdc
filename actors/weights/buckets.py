"""Tensors inside a bucket of raw bytes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from actors.weights.layout import Slot

CACHED_BYTES = 2 << 20
"""A CPU copies tensors in parts of this size, which are still in its cache when their digest is computed."""


def slot_tensor(bucket: Tensor, slot: Slot) -> Tensor:
    """A tensor in its bucket, uint8 [num_bytes]: a view."""
    content = bucket[slot.offset : slot.offset + slot.tensor.num_bytes]
    return content.view(getattr(torch, slot.tensor.dtype)).view(slot.tensor.shape)


def parts(target: Tensor, source: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both tensors in parts that a CPU copies one after the other; whole where the target is on a GPU."""
    if target.device.type != "cpu":
        return iter([(target, source)])
    size = CACHED_BYTES // target.itemsize
    return zip(torch.split(target.view(-1), size), torch.split(source.reshape(-1), size), strict=True)
