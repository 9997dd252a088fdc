"""A checksum that is computed where the bytes are, on a GPU as well as on a CPU, by two sums over 64-bit words."""

from __future__ import annotations

import torch
from torch import Tensor

from actors.weights.layout import BUCKET_ALIGNMENT

WORDS_PER_ROW = BUCKET_ALIGNMENT // 8
ROW_FACTOR = 0x1E3779B97F4A7C15
"""Odd, so that every multiple of it by an odd number is invertible modulo 2^64."""
COLUMN_FACTOR = 0x2545F4914F6CDD1D
CPU_PIECE_BYTES = 1 << 20
"""Read at a time on a CPU: a piece stays in the cache between the two sums."""


def bucket_digest(bucket: Tensor) -> Tensor:
    """Digest of a bucket, uint8 [num_bytes] with num_bytes a multiple of 4096: int64 [] on the bucket's device.

    The bytes are read as rows of 512 words. The sum of each row counts with an odd weight of its own and the sum of
    each column with an even one, modulo 2^64. So a word at (row, column) counts with an odd weight, which is
    invertible: one changed word always shows. Swapped words, rows or buckets change the weights, and show as well
    unless 64 bits happen to agree. This guards against faults, not against an adversary.
    """
    rows = bucket.view(torch.int64).view(-1, WORDS_PER_ROW)
    pieces = [rows] if bucket.is_cuda else torch.split(rows, CPU_PIECE_BYTES // BUCKET_ALIGNMENT)
    row_sums = torch.cat([piece.sum(1) for piece in pieces])
    column_sums = torch.stack([piece.sum(0) for piece in pieces]).sum(0)
    odd = torch.arange(len(row_sums), device=bucket.device).mul_(2).add_(1).mul_(ROW_FACTOR)
    even = torch.arange(WORDS_PER_ROW, device=bucket.device).add_(1).mul_(2 * COLUMN_FACTOR)
    return (row_sums * odd).sum() + (column_sums * even).sum()
