"""GPUs by name: memory and speed, as a plan needs them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from learner.memory import GIB

NOMINAL_SHARE = 0.8
"""Matrix products reach this share of the nominal speed in bfloat16: 788 of 989 TFLOP/s on an H200, as measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    name: str
    memory_gib: float
    """As the driver counts it, less than what the name says."""
    tflops: float | None
    """Of matrix products in bfloat16; None where nothing is known of the speed."""
    memory_gb_s: float = 0.0
    """Reading and writing its own memory."""
    link_gb_s: float = 0.0
    """Between two GPUs of a node, in one direction."""

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gib * GIB)


GPUS = {
    gpu.name: gpu
    for gpu in (
        # Measured: matrix products, copies within the memory, all-reduce over two GPUs.
        Gpu(name="h100", memory_gib=79.2, tflops=798, memory_gb_s=3000, link_gb_s=329),
        Gpu(name="h200", memory_gib=139.8, tflops=788, memory_gb_s=4300, link_gb_s=329),
        # Nominal, and so likely further off.
        Gpu(name="a100-40", memory_gib=39.4, tflops=NOMINAL_SHARE * 312, memory_gb_s=1400, link_gb_s=220),
        Gpu(name="a100-80", memory_gib=79.2, tflops=NOMINAL_SHARE * 312, memory_gb_s=1800, link_gb_s=220),
        Gpu(name="l40s", memory_gib=44.4, tflops=NOMINAL_SHARE * 362, memory_gb_s=780, link_gb_s=25),
        Gpu(name="b200", memory_gib=178.0, tflops=NOMINAL_SHARE * 2250, memory_gb_s=7000, link_gb_s=650),
    )
}


def find_gpu(name: str | None, memory_gib: float | None) -> Gpu:
    """A GPU of the table, with another memory if one is given; a GPU of which only the memory is known has no name.

    Raises:
        ValueError: no such name, or neither is given.
    """
    if name is not None and name not in GPUS:
        raise ValueError(f"--gpu={name} is invalid: must be one of {', '.join(GPUS)}, or give --gpu-memory in GiB")
    if memory_gib is not None and not 0 < memory_gib < math.inf:
        raise ValueError(f"--gpu-memory={memory_gib:g} is invalid: must be a number above 0 (GiB)")
    if name is None:
        assert memory_gib is not None, "the command gives one of the two"
        return Gpu(name=f"{memory_gib:g} GiB", memory_gib=memory_gib, tflops=None)
    known = GPUS[name]
    return known if memory_gib is None else replace(known, memory_gib=memory_gib)
