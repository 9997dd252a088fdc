"""Tensors written to safetensors files of bounded size."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from actors.errors import CheckpointError

SHARD_BYTES = 2 << 30
"""A file is closed at this size, which bounds the host memory needed to save a model of any size."""


def write_shards(
    tensors: Iterable[tuple[str, Tensor]], folder: Path, stem: str, *, shard_bytes: int | None = None
) -> dict[str, str]:
    """Write `stem`-00000.safetensors and so on, tensor by tensor; returns the file of each key, in order.

    Args:
        shard_bytes: at which a file is closed, SHARD_BYTES by default.

    Raises:
        CheckpointError: a file could not be written.
    """
    files: dict[str, str] = {}
    shard: dict[str, Tensor] = {}
    num_bytes = num_shards = 0

    def close() -> None:
        name = f"{stem}-{num_shards:05d}.safetensors"
        file = folder / name
        file.touch()
        mode = file.stat().st_mode
        try:
            save_file(shard, file, metadata={"format": "pt"})
        except SafetensorError as error:  # raised by the library on a full disk
            raise CheckpointError(f"{name} could not be written to {folder}: {error}") from error
        file.chmod(mode)  # the library keeps its files to their owner, and a server often runs as another user
        files.update(dict.fromkeys(shard, name))

    for key, tensor in tensors:
        shard[key] = tensor.detach().to("cpu", copy=True).contiguous()
        num_bytes += tensor.nbytes
        if num_bytes >= (shard_bytes or SHARD_BYTES):
            close()
            shard, num_bytes, num_shards = {}, 0, num_shards + 1
    if shard:
        close()
    return files
