"""Writes to a run folder: a file is replaced as a whole, a line is added as a whole; a full disk is one line."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from actors.errors import RunError


@contextlib.contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; after the body it is synced to disk and replaces `path`."""
    partial = path.with_name(f"{path.name}.tmp")
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(partial.unlink, missing_ok=True)  # on a full disk, its space is wanted
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file atomically: after a kill, either the old or the new version is there."""
    with replace_atomically(path) as partial:
        partial.write_text(text, encoding="utf-8")


def append_line(path: Path, entry: Mapping[str, Any]) -> None:
    """Add one JSON object as a line and sync it to disk. A line that does not fit is taken back.

    Where a killed writer left half a line, the new one begins after it: else both would be lost.
    """
    line = json.dumps(entry).encode() + b"\n"
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        end = os.lseek(handle, 0, os.SEEK_END)
        if end and os.pread(handle, 1, end - 1) != b"\n":
            line = b"\n" + line
        try:
            written = 0
            while written < len(line):
                written += os.write(handle, line[written:])
            os.fsync(handle)
        except OSError as error:
            error.filename = str(path)
            with contextlib.suppress(OSError):
                os.ftruncate(handle, end)
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def stop_on_full_disk(folder: Path) -> Iterator[None]:
    """Turn an error of the disk into one line. What was recorded before stays, and the run can be resumed from there.

    Raises:
        RunError: the body could not write.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{error.filename or folder} cannot be written: {error.strerror or error}; make room, then give the same "
            f"command again with run.name={folder.name}: the run resumes from its newest checkpoint"
        ) from error


def run_id(folder: Path) -> str:
    """What is the same for all drivers of a run, and another for any other run: names what it has on a cluster.

    It lies in the folder, since other machines may have a folder of the same path, and counts that path, since folders
    get copied.
    """
    path = folder / "id"
    if not path.is_file():
        write_atomically(path, secrets.token_hex(8))
    text = f"{path.read_text(encoding='utf-8', errors='replace').strip()} {folder.absolute()}"
    return hashlib.blake2s(text.encode(), digest_size=4).hexdigest()
