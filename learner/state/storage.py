"""Where checkpoints lie: a local folder, or any storage that fsspec knows by URL (`s3://bucket/runs`, `memory://x`).

A local file is forced to disk when it is complete, and a folder gets its name by one rename. Object stores have no
rename that is atomic: there, a folder counts from the moment in which its last file, the manifest, exists.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from actors.errors import CheckpointError


class Storage(Protocol):
    """Folders of files, by paths relative to a root. All methods raise OSError where the storage refuses."""

    url: str
    """The root, as other processes open it."""
    renames: bool
    """Whether a folder gets its name by an atomic rename. Where it does not, it is written under its final name."""

    def create(self, path: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """A new file in an existing folder. When the body ends it is on the disk, or sent."""

    def open(self, path: str) -> contextlib.AbstractContextManager[IO[bytes]]: ...

    def read_range(self, path: str, start: int, stop: int) -> bytes: ...

    def folders(self) -> list[str]:
        """Names of the folders in the root; none if there is no root."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of the files in a folder, by name; none if there is no folder."""

    def make(self, folder: str) -> None: ...

    def remove(self, path: str) -> None:
        """Remove a file, or a folder with all in it; nothing happens if there is none."""

    def finish(self, folder: str, name: str) -> None:
        """Give a complete folder its final name, which it has already where nothing is renamed."""


def open_storage(url: str | Path) -> Storage:
    """The storage of a path or URL.

    Raises:
        CheckpointError: the protocol is unknown, or its package is not installed.
    """
    text = str(url)
    if "://" not in text:
        return LocalStorage(Path(text))
    if text.startswith("file://"):
        return LocalStorage(Path(text.removeprefix("file://")))
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(text)
    except (ImportError, ValueError) as error:
        raise CheckpointError(f"{text} cannot be opened: {error}") from error
    return RemoteStorage(text.rstrip("/"), files, root.rstrip("/"))


class LocalStorage:
    """A folder of this machine, or of a file system that all nodes share."""

    renames = True

    def __init__(self, root: Path) -> None:
        self.url = str(root)
        self._root = root

    @contextlib.contextmanager
    def create(self, path: str) -> Iterator[IO[bytes]]:
        with (self._root / path).open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())

    def open(self, path: str) -> IO[bytes]:
        return (self._root / path).open("rb")

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        with self.open(path) as file:
            file.seek(start)
            return file.read(stop - start)

    def folders(self) -> list[str]:
        return sorted(path.name for path in self._root.iterdir() if path.is_dir()) if self._root.is_dir() else []

    def sizes(self, folder: str) -> dict[str, int]:
        place = self._root / folder
        return {path.name: path.stat().st_size for path in place.iterdir()} if place.is_dir() else {}

    def make(self, folder: str) -> None:
        (self._root / folder).mkdir(parents=True)

    def remove(self, path: str) -> None:
        place = self._root / path
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)

    def finish(self, folder: str, name: str) -> None:
        _force_to_disk(self._root / folder)
        (self._root / folder).rename(self._root / name)
        _force_to_disk(self._root)


class RemoteStorage:
    """A folder of a storage that fsspec opens."""

    renames = False

    def __init__(self, url: str, files: Any, root: str) -> None:
        self.url = url
        self._files = files
        self._root = root

    def create(self, path: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        return self._open(path, "wb")

    def open(self, path: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        return self._open(path, "rb")

    def _open(self, path: str, mode: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        stream: contextlib.AbstractContextManager[IO[bytes]] = self._files.open(f"{self._root}/{path}", mode)
        return stream

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        content: bytes = self._files.cat_file(f"{self._root}/{path}", start=start, end=stop)
        return content

    def folders(self) -> list[str]:
        return sorted(_name(entry) for entry in self._entries("") if entry["type"] == "directory")

    def sizes(self, folder: str) -> dict[str, int]:
        return {_name(entry): int(entry["size"]) for entry in self._entries(folder) if entry["type"] == "file"}

    def _entries(self, folder: str) -> list[dict[str, Any]]:
        self._files.invalidate_cache()  # other processes write as well
        try:
            entries: list[dict[str, Any]] = self._files.ls(f"{self._root}/{folder}".rstrip("/"), detail=True)
        except FileNotFoundError:
            return []
        return entries

    def make(self, folder: str) -> None:
        self._files.makedirs(f"{self._root}/{folder}", exist_ok=True)

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.rm(f"{self._root}/{path}", recursive=True)

    def finish(self, folder: str, name: str) -> None:
        assert folder == name, (folder, name)


def _name(entry: dict[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]


def _force_to_disk(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
