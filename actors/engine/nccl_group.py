"""The learner's place in the process group that carries weights: vLLM's communicator, as rank 0.

The engines join it through vLLM's own NCCL engine (`actors.engine.transfer`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class NcclGroup:
    """Blocks until all others have joined."""

    def __init__(self, address: str, port: int, *, world_size: int, device: torch.device) -> None:
        from vllm.distributed.weight_transfer import nccl_common

        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._group: Any = nccl_common.stateless_init_process_group(
            address, port, rank=0, world_size=world_size, device=torch.cuda.current_device()
        )

    def broadcast(self, bucket: Tensor, *, after: Any) -> Any:
        """Send a bucket to all others, after an event of the stream that filled it; returns the event of its end."""
        self._stream.wait_event(after)
        self._group.broadcast(bucket, src=0, stream=self._stream)
        return self._stream.record_event()

    def abort(self) -> None:
        """Leave at once, whatever is under way."""
        self._group.destroy()
