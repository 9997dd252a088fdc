"""Where the ranks of one machine meet: at a port of loopback only. Torch's own one listens on all interfaces."""

from __future__ import annotations

import socket
from datetime import timedelta

import torch.distributed as dist

LOOPBACK = "127.0.0.1"


def meet_on_loopback(*, rank: int, world_size: int, address: str, port: int, timeout_s: float) -> None:
    """Initialize a gloo process group if the address is loopback; otherwise do nothing.

    DeepSpeed takes over the group that it finds. With NCCL it has to create the group itself, bound to a device.
    """
    if address != LOOPBACK:
        return
    timeout = timedelta(seconds=timeout_s)
    listener = socket.create_server((address, port)).detach() if rank == 0 else None
    store = dist.TCPStore(  # type: ignore[attr-defined]
        address, port, world_size, rank == 0, timeout=timeout, master_listen_fd=listener
    )
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timeout)
