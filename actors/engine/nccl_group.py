"""The learner's place in the process group that carries weights: vLLM's communicator, as rank 0.

The engines join it through vLLM's own NCCL engine (`actors.engine.transfer`).
"""

from __future__ import annotations

import socket
from typing import Any

import torch
from torch import Tensor


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
    return port


class NcclGroup:
    """Blocks until all others have joined."""

    def __init__(self, address: str, port: int, *, world_size: int, device: torch.device) -> None:
        from vllm.distributed.weight_transfer import nccl_common

        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._group: Any = nccl_common.stateless_init_process_group(
            address, port, rank=0, world_size=world_size, device=torch.cuda.current_device()
        )

    def broadcast(self, bucket: Tensor, *, after: Any) -> None:
        """Send a bucket to all others and wait for its end; starts after an event of the stream that filled it."""
        self._stream.wait_event(after)
        self._group.broadcast(bucket, src=0, stream=self._stream)
        self._stream.synchronize()

    def abort(self) -> None:
        """Leave at once, whatever is under way."""
        self._group.destroy()
