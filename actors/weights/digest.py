"""A checksum that is computed where the bytes are, on a GPU as well as on a CPU, in one pass at the speed of memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from actors.weights.buckets import CACHED_BYTES

WORDS_PER_ROW = 512
ROW_BYTES = 8 * WORDS_PER_ROW
ROW_FACTOR = 0x1E3779B97F4A7C15
"""Odd, so that its product with an odd number is odd, and thus invertible modulo 2^64."""
PIECE_BYTES = 1 << 32
"""Read at a time, so that the memory for the sums of rows stays small."""


def bucket_digest(bucket: Tensor) -> Tensor:
    """Digest of a bucket, uint8 [num_bytes]: int64 [] on the bucket's device.

    The bytes, followed by zeros up to a multiple of 4096, are read as rows of 512 words of 64 bits, and the sum of each
    row counts with an odd weight of its own, modulo 2^64. One changed word always shows, as odd weights are invertible;
    rows, tensors or buckets in another place or of another version show unless 64 bits happen to agree. Words that
    change places within their row of 4 KiB do not show: no fault of a transport does that. It guards against faults,
    not against an adversary.
    """
    return RunningDigest(bucket).finish()


class RunningDigest:
    """`bucket_digest` of a bucket that fills from its beginning on: a CPU reads what it still has in its cache."""

    def __init__(self, bucket: Tensor) -> None:
        self._bucket = bucket
        self._end = 0
        """Bytes read, a multiple of those of a row."""
        self._digest = torch.zeros((), dtype=torch.int64, device=bucket.device)

    def extend(self, num_bytes: int) -> None:
        """The first `num_bytes` are there. They are read now, or later together with what follows."""
        if self._bucket.device.type == "cpu" and num_bytes - self._end >= CACHED_BYTES:
            self._read(num_bytes - num_bytes % ROW_BYTES)

    def finish(self) -> Tensor:
        """The digest, int64 [], of the whole bucket."""
        self._read(len(self._bucket))
        return self._digest

    def _read(self, end: int) -> None:
        for start in range(self._end, end, PIECE_BYTES):
            row_sums = _row_sums(self._bucket[start : min(start + PIECE_BYTES, end)])
            first_row = start // ROW_BYTES
            rows = torch.arange(first_row, first_row + len(row_sums), device=self._bucket.device)
            self._digest += (row_sums * rows.mul_(2).add_(1).mul_(ROW_FACTOR)).sum()
        self._end = end


def _row_sums(content: Tensor) -> Tensor:
    num_rows, rest = divmod(len(content), ROW_BYTES)
    whole = content[: num_rows * ROW_BYTES].view(torch.int64).view(num_rows, WORDS_PER_ROW).sum(1)
    if not rest:
        return whole
    last = F.pad(content[num_rows * ROW_BYTES :], (0, ROW_BYTES - rest)).view(torch.int64).sum()
    return torch.cat([whole, last[None]])
