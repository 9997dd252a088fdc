"""Files that a kill leaves as they were or as they should be, and the lock on a run's folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from actors.errors import RunError


@contextlib.contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to in the body; afterwards it is forced to disk and takes the place of `path`."""
    partial = path.with_name(f"{path.name}.tmp")
    yield partial
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a kill leaves the old one or the new one."""
    with replace_atomically(path) as partial:
        partial.write_text(text, encoding="utf-8")


def lock_run_folder(folder: Path) -> IO[str]:
    """Hold the run's folder for one driver (fault 23). The lock goes with the process, also on kill -9.

    Raises:
        RunError: another driver holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise RunError(f"{folder} is in use by another driver: wait for it, or set run.name") from error
    return lock
