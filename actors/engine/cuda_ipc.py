"""Device memory shared between processes of one GPU, as handles of plain types.

PyTorch's own reduction passes classes along, which only pickle carries; a bucket is always flat bytes, so numbers and
byte strings are enough.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor
from torch.storage import TypedStorage

_FIRST = 7
"""Arguments of PyTorch's `rebuild_cuda_tensor` before the ones that identify the memory: class, size, stride, offset,
class of the storage, dtype, device."""


def export_handle(bucket: Tensor) -> list[Any]:
    """A handle of uint8 [num_bytes] on a GPU, valid in other processes while the tensor lives."""
    arguments = reduce_tensor(bucket)[1]  # type: ignore[no-untyped-call]
    return [int(arguments[3]), *arguments[_FIRST:]]


def open_handle(handle: list[Any], num_bytes: int, device: torch.device) -> Tensor:
    """The memory behind a handle, uint8 [num_bytes], in this process; nothing is copied."""
    offset, *identity = handle
    tensor: Tensor = rebuild_cuda_tensor(  # type: ignore[no-untyped-call]
        Tensor, (num_bytes,), (1,), offset, TypedStorage, torch.uint8, device.index or 0, *identity
    )
    return tensor
