"""Passes weights to the engine's process: buckets as files in shared memory."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from actors.errors import WeightSyncError

SHARED_MEMORY = Path("/dev/shm")


def staging_root() -> Path:
    """Folder for staged buckets: shared memory if available, or else the temporary folder."""
    return SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())


def write_buckets(buckets: Sequence[np.ndarray], root: Path) -> Path:
    """Write buckets (uint8 [num_bytes]) as files 0, 1, ... into a new folder under `root`, and return the folder.

    Raises:
        WeightSyncError: they do not fit. Nothing is left behind.
    """
    needed = sum(bucket.nbytes for bucket in buckets)
    free = shutil.disk_usage(root).free
    if needed > free:
        raise WeightSyncError(_no_room(root, needed, free, "not enough room"))
    folder = Path(tempfile.mkdtemp(prefix="visionthink-weights-", dir=root))
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            for number, bucket in enumerate(buckets):
                with (folder / str(number)).open("wb") as file:  # `tofile` would lose the reason of a failure
                    file.write(bucket.data)
        except OSError as error:
            free = shutil.disk_usage(root).free
            raise WeightSyncError(_no_room(folder, needed, free, error.strerror or str(error))) from error
        on_failure.pop_all()
    return folder


def _no_room(path: Path, needed: int, free: int, reason: str) -> str:
    return (
        f"weights of {needed} bytes cannot be staged in {path}, which has {free} bytes free ({reason}): "
        "free some, or enlarge it (in a container: --shm-size)"
    )
