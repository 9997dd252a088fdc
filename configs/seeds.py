"""Seeds of processes, all derived from the one seed of a run."""

from __future__ import annotations

import hashlib

SEED_BITS = 31
"""Every library takes seeds of this size: NumPy's generators of old, which vLLM seeds, take 32 bits, PyTorch 64."""


def derive_seed(seed: int, *labels: str | int) -> int:
    """A seed in [0, 2**31) for the process or purpose that the labels name: ("rollout worker", 3).

    Any integer will do for `seed`, negative ones and those of hundreds of digits included. The result depends on
    nothing but the arguments, and labels that differ give seeds that differ, up to chance.
    """
    digest = hashlib.blake2b(repr((seed, labels)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - SEED_BITS)
