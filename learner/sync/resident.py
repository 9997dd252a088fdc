"""Weights that are sent from where the learner keeps them, without a copy of their own.

DeepSpeed's ZeRO-1 and 2 keep all trained parameters as views of one flat buffer, so that buckets can be its parts.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actors.errors import WeightSyncError
from actors.weights.layout import Slot, TensorSpec, WeightLayout

MAX_WASTE = 1.05
"""Bytes of the memory that parameters lie in, over their own: what else lies there would travel with them."""
MAX_BUCKETS = 64
"""Above, as with frozen parameters that lie apart, sending each takes longer than copying all into few buckets."""
CUT_BYTES = 16
"""A bucket starts at a multiple of this many bytes, so that words of 64 bits and wide copies are possible."""


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


def find_resident(
    tensors: Sequence[TensorSpec], parameters: Sequence[Tensor], *, bucket_bytes: int
) -> ResidentWeights | None:
    """The memory of whole parameters, given with the tensors that receivers expect; None where it cannot be sent as it
    is: they are sharded, of another dtype, not contiguous, scattered, or share their memory with too much else.

    It is cut into buckets of about `bucket_bytes` between tensors.
    """
    memories: dict[int, Tensor] = {}
    places = []
    for tensor, parameter in zip(tensors, parameters, strict=True):
        kind = str(parameter.dtype).removeprefix("torch.")
        if kind != tensor.dtype or tuple(parameter.shape) != tensor.shape or not parameter.is_contiguous():
            return None
        storage = parameter.untyped_storage()
        start = storage.data_ptr()
        memories[start] = torch.empty(0, dtype=torch.uint8, device=parameter.device).set_(storage)
        places.append((start, parameter.data_ptr() - start, tensor))
    slots, buckets = [], list[Tensor]()
    memory = cut = -1
    for start, offset, tensor in sorted(places, key=operator.itemgetter(0, 1)):
        is_full = offset + tensor.num_bytes - cut > bucket_bytes and offset % CUT_BYTES == 0 < offset - cut
        if start != memory:
            memory, cut = start, 0
            buckets.append(memories[start])
        elif is_full:
            buckets[-1:] = torch.split(buckets[-1], [offset - cut, buckets[-1].nbytes - (offset - cut)])
            cut = offset
        slots.append(Slot(tensor=tensor, bucket=len(buckets) - 1, offset=offset - cut))
    layout = WeightLayout(slots=tuple(slots), bucket_sizes=tuple(bucket.nbytes for bucket in buckets))
    too_much = layout.num_bytes > MAX_WASTE * sum(tensor.num_bytes for tensor in tensors)
    if too_much or len(buckets) > MAX_BUCKETS:
        return None
    return ResidentWeights(
        layout=layout,
        buckets=tuple(buckets),
        parameters=tuple(parameters),
        addresses=tuple(each.data_ptr() for each in parameters),
    )
