"""Tensors inside a bucket of raw bytes."""

from __future__ import annotations

import torch
from torch import Tensor

from actors.weights.layout import Slot


def slot_tensor(bucket: Tensor, slot: Slot) -> Tensor:
    """A tensor in its bucket, uint8 [num_bytes]: a view."""
    content = bucket[slot.offset : slot.offset + slot.tensor.num_bytes]
    return content.view(getattr(torch, slot.tensor.dtype)).view(slot.tensor.shape)
