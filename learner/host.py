"""Settings and address of the machine that a rank runs on."""

from __future__ import annotations

import ctypes
import os
import socket

MALLOC_TRIM_THRESHOLD, MALLOC_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`."""


def disable_malloc_trim() -> None:
    """Make glibc keep freed blocks of up to 32 MiB for the next tensor.

    By default each block is returned to the kernel and the next one is zero-filled again, which on a CPU took more than
    half of an update's time.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(MALLOC_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(MALLOC_TRIM_THRESHOLD, (2 << 30) - 1)


def own_address() -> str:
    """The address at which other machines reach this one; loopback where all of a run is on this machine.

    Connecting a datagram socket sends nothing.
    """
    if os.environ.get("VISIONTHINK_LOOPBACK"):
        return "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:  # no network: all ranks are on this machine
            return "127.0.0.1"
        address: str = probe.getsockname()[0]
        return address


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
    return port
