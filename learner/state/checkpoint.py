"""Checkpoints that are complete or not there at all (rules F and G of the reliability rules). Handles files only.

Several processes write a checkpoint's files, each hashing what it writes; then one process seals it: a manifest that
lists every file comes last. On a local disk all this happens in a temporary folder, which one rename puts in its place.
Whatever happens before, the earlier checkpoints are as they were.

    checkpoints/
    ├── step-00000005/    manifest.json and the files it lists
    ├── step-00000010/
    └── .tmp-00000015/    being written, or left by a killed run; removed by the next one
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors.errors import CheckpointError
from learner.state.storage import Storage, open_storage

MANIFEST = "manifest.json"
FORMAT = 2
ALLOWED_SUFFIXES = (".json", ".safetensors")
"""Formats that cannot execute code when loaded."""
CHECKPOINT_NAME = re.compile(r"step-(\d{8,})")
TEMPORARY_PREFIX = ".tmp-"
BLOCK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenFile:
    """A file of a checkpoint, as its writer hashed it."""

    bytes: int
    sha256: str


class HashedFile:
    """A new file that is hashed while it is written. Mutable: it counts what has been written so far."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self._num_bytes = 0

    def write(self, content: bytes | memoryview) -> None:
        for start in range(0, len(content), BLOCK_BYTES):
            block = content[start : start + BLOCK_BYTES]
            self._digest.update(block)
            self._stream.write(block)
        self._num_bytes += len(content)

    @property
    def written(self) -> WrittenFile:
        return WrittenFile(bytes=self._num_bytes, sha256=self._digest.hexdigest())


@contextlib.contextmanager
def hashed_file(storage: Storage, path: str) -> Iterator[HashedFile]:
    """Write a file; on the disk when the body has ended.

    Raises:
        CheckpointError: the storage refuses, for instance because it is full.
    """
    try:
        with storage.create(path) as stream:
            yield HashedFile(stream)
    except OSError as error:
        raise CheckpointError(f"{storage.url}/{path} could not be written: {error}") from error


def write_json(storage: Storage, path: str, content: object) -> WrittenFile:
    """Write a JSON file; raises CheckpointError as `hashed_file` does."""
    with hashed_file(storage, path) as file:
        file.write(json.dumps(content).encode())
    return file.written


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        url: a path, or a URL of `learner.state.storage`.
    """

    def __init__(self, url: str | Path) -> None:
        self.storage = open_storage(url)
        self.url = self.storage.url

    def check_writable(self) -> None:
        """Write a file and remove it again.

        Raises:
            CheckpointError: the storage refuses.
        """
        folder = self.begin(0)
        write_json(self.storage, f"{folder}/probe.json", {})
        self.discard(0)

    def begin(self, step: int) -> str:
        """Make room for the files of a checkpoint; returns the folder, inside the storage, to write them to.

        Raises:
            CheckpointError: the storage refuses.
        """
        folder = self._folder_in_progress(step)
        with self._writing(step):
            self._remove(folder)
            self.storage.make(folder)
        return folder

    def seal(self, step: int, files: Mapping[str, WrittenFile]) -> str:
        """Complete a checkpoint of which all files are written; returns its name. One of the same step is replaced.

        Raises:
            CheckpointError: the storage refuses, or a file is missing, incomplete or of a type that could run code.
        """
        folder, name = self._folder_in_progress(step), checkpoint_name(step)
        with self._writing(step):
            sizes = self.storage.sizes(folder)
            for file in sorted(sizes.keys() | files.keys()):
                _check_listed(file, sizes.get(file), files.get(file), self.url)
            listed = {file: asdict(written) for file, written in sorted(files.items())}
            write_json(self.storage, f"{folder}/{MANIFEST}", {"format": FORMAT, "step": step, "files": listed})
            if folder != name:
                self._remove(name)
            self.storage.finish(folder, name)
        return name

    def discard(self, step: int) -> None:
        """Remove what was written of a checkpoint that is not sealed, as far as the storage allows it."""
        with contextlib.suppress(OSError):
            self._remove(self._folder_in_progress(step))

    def discard_incomplete(self) -> list[str]:
        """Remove what killed runs left; returns their names. Only the run that writes here may call it.

        Raises:
            CheckpointError: the storage refuses.
        """
        with self._reaching():
            names = [name for name in self.storage.folders() if self._is_incomplete(name)]
            for name in names:
                self._remove(name)
        return names

    def list(self) -> list[str]:
        """Names of the complete checkpoints, oldest first, verified or not.

        Raises:
            CheckpointError: the storage refuses.
        """
        with self._reaching():
            names = [name for name in self.storage.folders() if CHECKPOINT_NAME.fullmatch(name)]
            return sorted((name for name in names if not self._is_incomplete(name)), key=step_of)

    def read_json(self, name: str, file: str) -> dict[str, Any]:
        """A JSON file of a checkpoint, which must be the one that the manifest lists.

        Raises:
            CheckpointError: it cannot be read, or is damaged.
        """
        return read_json(self.storage, name, file)

    def find_flaw(self, name: str, *, reads_tensors: bool = True) -> str | None:
        """What is wrong with a checkpoint, or None: every listed file is there, with its size and its hash.

        Args:
            reads_tensors: whether safetensors files are hashed too; whoever loads them verifies what it reads.
        """
        try:
            files = read_manifest(self.storage, name)
            sizes = self.storage.sizes(name)
        except (OSError, CheckpointError) as error:
            return str(error)
        present = sizes.keys() - {MANIFEST}
        if present != files.keys():
            return f"its files are {sorted(present)}, the manifest lists {sorted(files)}"
        for file, written in files.items():
            if sizes[file] != written.bytes:
                return f"{file} has {sizes[file]} bytes, the manifest says {written.bytes}"
            if reads_tensors or file.endswith(".json"):
                try:
                    found = _sha256(self.storage, f"{name}/{file}")
                except OSError as error:
                    return f"{file} cannot be read: {error}"
                if found != written.sha256:
                    return _hash_differs(file, found, written)
        return None

    def prune(self, *, newest: int, keep: int, keep_every: int = 0) -> tuple[str, ...]:
        """Remove checkpoints up to step `newest` but for the last `keep` of them; returns the names of those removed.

        Args:
            keep_every: checkpoints of steps that are multiples of this are kept as well; 0 keeps no others.

        Raises:
            CheckpointError: the storage refuses.
        """
        names = [name for name in self.list() if step_of(name) <= newest]
        old = [name for name in names[:-keep] if not (keep_every and step_of(name) % keep_every == 0)]
        with self._reaching():
            for name in old:
                self._remove(name)
        return tuple(old)

    def _folder_in_progress(self, step: int) -> str:
        return f"{TEMPORARY_PREFIX}{step:08d}" if self.storage.renames else checkpoint_name(step)

    def _is_incomplete(self, name: str) -> bool:
        if name.startswith(TEMPORARY_PREFIX):
            return True
        is_checkpoint = CHECKPOINT_NAME.fullmatch(name) is not None
        return is_checkpoint and not self.storage.renames and MANIFEST not in self.storage.sizes(name)

    def _remove(self, name: str) -> None:
        """Remove a checkpoint, manifest first, so that an interrupted removal leaves nothing that looks valid."""
        self.storage.remove(f"{name}/{MANIFEST}")
        self.storage.remove(name)

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(f"{self.url} cannot be reached: {error}") from error

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(f"checkpoint of step {step} could not be written to {self.url}: {error}") from error


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def step_of(name: str) -> int:
    return int(name.removeprefix("step-"))


def read_manifest(storage: Storage, name: str) -> dict[str, WrittenFile]:
    """The files of a checkpoint.

    Raises:
        CheckpointError: there is no manifest, it is damaged, or of another format.
    """
    try:
        with storage.open(f"{name}/{MANIFEST}") as file:
            manifest = json.loads(file.read())
        version = manifest["format"]
        if version == FORMAT:
            return {file: WrittenFile(**written) for file, written in manifest["files"].items()}
    except FileNotFoundError as error:
        raise CheckpointError("it has no manifest") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"its manifest cannot be read ({type(error).__name__}: {error})") from error
    raise CheckpointError(
        f"its format is {version}, this version reads {FORMAT}: resume it with the version that wrote it, or start anew"
    )


def read_verified(storage: Storage, name: str, file: str, written: WrittenFile) -> bytes:
    """A whole file of a checkpoint, of which the hash is right.

    Raises:
        CheckpointError: it cannot be read, or is damaged.
    """
    try:
        with storage.open(f"{name}/{file}") as stream:
            content: bytes = stream.read()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if (found := hashlib.sha256(content).hexdigest()) != written.sha256:
        raise CheckpointError(_hash_differs(file, found, written))
    return content


def read_json(storage: Storage, name: str, file: str) -> dict[str, Any]:
    """A JSON file of a checkpoint, verified; raises CheckpointError as `read_verified` does."""
    files = read_manifest(storage, name)
    if file not in files:
        raise CheckpointError(f"it has no {file}")
    content: dict[str, Any] = json.loads(read_verified(storage, name, file, files[file]))
    return content


def _check_listed(file: str, size: int | None, written: WrittenFile | None, url: str) -> None:
    if not file.endswith(ALLOWED_SUFFIXES):
        raise CheckpointError(f"{file} is not allowed in a checkpoint: only {', '.join(ALLOWED_SUFFIXES)} files are")
    if written is None:
        raise CheckpointError(f"{file} is in the checkpoint, but nobody has reported it")
    if size is None:
        raise CheckpointError(
            f"{file} was written by another node and is not in {url} here: set train.checkpoint_dir to storage that "
            "all nodes share"
        )
    if size != written.bytes:
        raise CheckpointError(f"{file} has {size} bytes, its writer reported {written.bytes}")


def _sha256(storage: Storage, path: str) -> str:
    digest = hashlib.sha256()
    with storage.open(path) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _hash_differs(file: str, found: str, written: WrittenFile) -> str:
    return f"{file} has hash {found[:12]}, the manifest says {written.sha256[:12]}"
