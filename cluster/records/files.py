"""Atomic file writes, and the lock on a run folder."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from actors.errors import RunError


@contextlib.contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; after the body it is synced to disk and replaces `path`."""
    partial = path.with_name(f"{path.name}.tmp")
    yield partial
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file atomically: after a kill, either the old or the new version is there."""
    with replace_atomically(path) as partial:
        partial.write_text(text, encoding="utf-8")


def lock_run_folder(folder: Path) -> IO[str]:
    """Lock the run folder for this driver (fault 23). The lock is released when the process ends, even by kill -9.

    Raises:
        RunError: another driver holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise RunError(f"{folder} is in use by another driver: wait for it, or set run.name") from error
    return lock


def run_id(folder: Path) -> str:
    """What is the same for all drivers of a run, and another for any other run: names what it has on a cluster.

    It lies in the folder, since other machines may have a folder of the same path, and counts that path, since folders
    get copied.
    """
    path = folder / "id"
    if not path.is_file():
        write_atomically(path, secrets.token_hex(8))
    text = f"{path.read_text(encoding='utf-8').strip()} {folder.absolute()}"
    return hashlib.blake2s(text.encode(), digest_size=4).hexdigest()
