"""A checksum that is computed where the bytes are, on a GPU as well as on a CPU, in one pass at the speed of memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WORDS_PER_ROW = 512
ROW_BYTES = 8 * WORDS_PER_ROW
ROW_FACTOR = 0x1E3779B97F4A7C15
"""Odd, so that its product with an odd number is odd, and thus invertible modulo 2^64."""
PIECE_BYTES = 1 << 29
"""Read at a time, so that the memory for the sums of rows stays small."""


def bucket_digest(bucket: Tensor) -> Tensor:
    """Digest of a bucket, uint8 [num_bytes]: int64 [] on the bucket's device.

    The bytes, followed by zeros up to a multiple of 4096, are read as rows of 512 words of 64 bits, and the sum of each
    row counts with an odd weight of its own, modulo 2^64. One changed word always shows, as odd weights are invertible;
    rows, tensors or buckets in another place or of another version show unless 64 bits happen to agree. Words that
    change places within their row of 4 KiB do not show: no fault of a transport does that. It guards against faults,
    not against an adversary.
    """
    digest = torch.zeros((), dtype=torch.int64, device=bucket.device)
    first_row = 0
    for start in range(0, len(bucket), PIECE_BYTES):
        row_sums = _row_sums(bucket[start : start + PIECE_BYTES])
        last_row = first_row + len(row_sums)
        weights = torch.arange(first_row, last_row, device=bucket.device).mul_(2).add_(1).mul_(ROW_FACTOR)
        digest += (row_sums * weights).sum()
        first_row = last_row
    return digest


def _row_sums(content: Tensor) -> Tensor:
    num_rows, rest = divmod(len(content), ROW_BYTES)
    whole = content[: num_rows * ROW_BYTES].view(torch.int64).view(num_rows, WORDS_PER_ROW).sum(1)
    if not rest:
        return whole
    last = F.pad(content[num_rows * ROW_BYTES :], (0, ROW_BYTES - rest)).view(torch.int64).sum()
    return torch.cat([whole, last[None]])
