"""Host memory for copies of a learner's state, used again when nobody reads it any more."""

from __future__ import annotations

import weakref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class HostBuffers:
    """Buffers float32 [3, N], page-locked where a GPU copies into them.

    To allocate and lock memory takes longer than to copy into it. So a buffer comes back when the last array over it is
    gone: while a share is written to disk or sent to another node, the next one gets other memory.
    """

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._free: list[Tensor] = []

    def take(self, num_elements: int) -> tuple[Tensor, NDArray[np.float32]]:
        """Rows [3, N] with arbitrary content, as a tensor to fill now and as the array that keeps them from reuse."""
        tensor = self._free.pop() if self._free else None
        if tensor is None or tensor.shape[1] != num_elements:
            tensor = torch.empty(3, num_elements, dtype=torch.float32, pin_memory=self._pinned)
        array: NDArray[np.float32] = tensor.numpy()
        weakref.finalize(array, self._free.append, tensor).atexit = False
        return tensor, array
