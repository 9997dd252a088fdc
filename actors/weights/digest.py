"""A checksum that is computed where the bytes are, on a GPU as well as on a CPU, in one pass at the speed of memory."""

from __future__ import annotations

import torch
from torch import Tensor

WORDS_PER_ROW = 128
ROW_FACTOR = 0x1E3779B97F4A7C15
"""Odd, so that its product with an odd number is odd, and thus invertible modulo 2^64."""


def bucket_digest(bucket: Tensor) -> Tensor:
    """Digest of a bucket, uint8 [num_bytes] with num_bytes a multiple of 1024: int64 [] on the bucket's device.

    The bytes are read as rows of 128 words of 64 bits, and the sum of each row counts with an odd weight of its own,
    modulo 2^64. One changed word always shows, as odd weights are invertible; rows, tensors or buckets in another place
    or of another version show unless 64 bits happen to agree. Words that change places within their row of 1 KiB do not
    show: no fault of a transport does that. It guards against faults, not against an adversary.
    """
    row_sums = bucket.view(torch.int64).view(-1, WORDS_PER_ROW).sum(1)
    weights = torch.arange(len(row_sums), device=bucket.device).mul_(2).add_(1).mul_(ROW_FACTOR)
    return (row_sums * weights).sum()
