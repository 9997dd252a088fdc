"""Room for weights in shared memory, and a copy of a version where the learner's memory cannot be reached."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from actors.errors import WeightSyncError

SHARED_MEMORY = Path("/dev/shm")
PREFIX = "visionthink-weights-"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def staging_root() -> Path:
    """Folder for weights: shared memory if available, or else the temporary folder."""
    return SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())


def check_room(needed: int, root: Path) -> None:
    """Raise WeightSyncError unless `root` has `needed` bytes free."""
    free = shutil.disk_usage(root).free
    if needed > free:
        raise WeightSyncError(_no_room(root, needed, free, "not enough room"))


def file_identity(path: str) -> list[str | int]:
    """The same for every process that reaches a file under this path, and for no other file of any machine.

    Raises:
        OSError: there is none.
    """
    found = os.stat(path)
    return [BOOT_ID.read_text(encoding="ascii").strip(), found.st_dev, found.st_ino]


def write_version(buckets: Sequence[np.ndarray], root: Path) -> Path:
    """Write the buckets of a version (uint8 [num_bytes] each), one after the other, into a new file under `root`.

    Raises:
        WeightSyncError: they do not fit. Nothing is left behind.
    """
    needed = sum(bucket.nbytes for bucket in buckets)
    check_room(needed, root)
    path = root / f"{PREFIX}{secrets.token_hex(6)}"
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(path.unlink, missing_ok=True)
        try:
            with path.open("xb") as file:  # `tofile` would lose the reason of a failure
                for bucket in buckets:
                    file.write(bucket.data)
        except OSError as error:
            free = shutil.disk_usage(root).free
            raise WeightSyncError(_no_room(path, needed, free, error.strerror or str(error))) from error
        on_failure.pop_all()
    return path


def _no_room(path: Path, needed: int, free: int, reason: str) -> str:
    return (
        f"weights of {needed} bytes do not fit into {path}, which has {free} bytes free ({reason}): "
        "free some, or enlarge it (in a container: --shm-size)"
    )
