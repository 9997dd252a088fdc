"""Weights that are sent from where the learner keeps them, without a copy of their own.

DeepSpeed's ZeRO-1 and 2 keep all trained parameters as views of one flat buffer, so that a bucket can be that buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actors.errors import WeightSyncError
from actors.weights.layout import Slot, TensorSpec, WeightLayout

MAX_WASTE = 1.05
"""Bytes of the memory that parameters lie in, over their own: what else lies there would travel with them."""


@dataclass(frozen=True, slots=True)
class ResidentWeights:
    """Whole parameters on the device, and the memory that they lie in: the buckets."""

    layout: WeightLayout
    buckets: tuple[Tensor, ...]
    """uint8 [num_bytes] each."""
    parameters: tuple[Tensor, ...]
    addresses: tuple[int, ...]

    def check(self) -> None:
        """Raise WeightSyncError if parameters lie elsewhere now."""
        if tuple(each.data_ptr() for each in self.parameters) != self.addresses:
            raise WeightSyncError("the learner's parameters have moved in memory; the receivers have to connect anew")


def find_resident(tensors: Sequence[TensorSpec], parameters: Sequence[Tensor]) -> ResidentWeights | None:
    """The memory of whole parameters, given with the tensors that receivers expect; None where it cannot be sent as it
    is: they are sharded, of another dtype, not contiguous, or share their memory with too much else.
    """
    buckets: dict[int, tuple[int, Tensor]] = {}
    slots = []
    for tensor, parameter in zip(tensors, parameters, strict=True):
        kind = str(parameter.dtype).removeprefix("torch.")
        if kind != tensor.dtype or tuple(parameter.shape) != tensor.shape or not parameter.is_contiguous():
            return None
        storage = parameter.untyped_storage()
        if storage.data_ptr() not in buckets:
            content = torch.empty(0, dtype=torch.uint8, device=parameter.device).set_(storage)
            buckets[storage.data_ptr()] = (len(buckets), content)
        bucket, content = buckets[storage.data_ptr()]
        slots.append(Slot(tensor=tensor, bucket=bucket, offset=parameter.data_ptr() - content.data_ptr()))
    slots.sort(key=lambda slot: slot.bucket)  # parameters of several groups may lie in turn
    contents = tuple(content for _, content in buckets.values())
    layout = WeightLayout(slots=tuple(slots), bucket_sizes=tuple(content.nbytes for content in contents))
    if layout.num_bytes > MAX_WASTE * sum(tensor.num_bytes for tensor in tensors):
        return None
    return ResidentWeights(
        layout=layout,
        buckets=contents,
        parameters=tuple(parameters),
        addresses=tuple(each.data_ptr() for each in parameters),
    )
