"""Atomic checkpoints (rules F and G of the reliability rules). Handles files only, no tensors or processes.

A checkpoint is written into a temporary directory beside its place, every file is hashed and forced to disk, and one
rename puts it there. Whatever happens before the rename leaves the earlier checkpoints as they were.

    checkpoints/
    ├── step-00000005/    manifest.json and the files it lists
    ├── step-00000010/
    └── .tmp-00000015/    what a killed run leaves; removed by the next one
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from actors.errors import CheckpointError

MANIFEST = "manifest.json"
FORMAT = 1
ALLOWED_SUFFIXES = (".json", ".safetensors")
"""Formats that cannot execute code when loaded."""
CHECKPOINT_NAME = re.compile(r"step-(\d{8,})")
TEMPORARY_PREFIX = ".tmp-"
READ_BYTES = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundCheckpoint:
    """Result of a search for the newest valid checkpoint."""

    path: Path | None
    """The newest valid checkpoint."""
    rejected: tuple[str, ...]
    """Why newer ones were skipped, and what was removed."""


def write_checkpoint(root: Path, step: int, write: Callable[[Path], None], keep: int) -> Path:
    """Create a checkpoint from the files (JSON and safetensors) that `write` produces; returns its directory.

    An existing checkpoint of the same step is replaced. Afterwards only the newest `keep` remain.

    Raises:
        CheckpointError: it could not be written, or `write` left a file of another type. Older checkpoints are kept.
    """
    final, temporary = root / f"step-{step:08d}", root / f"{TEMPORARY_PREFIX}{step:08d}"
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, temporary, ignore_errors=True)
        try:
            root.mkdir(parents=True, exist_ok=True)
            _remove(temporary)
            temporary.mkdir()
            write(temporary)
            _seal(temporary, step)
            _remove(final)
            temporary.rename(final)
            _force_to_disk(root)
        except OSError as error:
            raise CheckpointError(f"checkpoint of step {step} could not be written to {root}: {error}") from error
    prune(root, keep)
    return final


def newest_checkpoint(root: Path) -> FoundCheckpoint:
    """The newest checkpoint that passes verification; partial ones are removed, damaged ones skipped."""
    rejected = []
    if not root.is_dir():
        return FoundCheckpoint(path=None, rejected=())
    for partial in sorted(root.glob(f"{TEMPORARY_PREFIX}*")):
        shutil.rmtree(partial)
        rejected.append(f"{partial.name} is incomplete: removed")
    for path in reversed(list_checkpoints(root)):
        flaw = find_flaw(path)
        if flaw is None:
            return FoundCheckpoint(path=path, rejected=tuple(rejected))
        rejected.append(f"{path.name} fails verification: {flaw}")
    return FoundCheckpoint(path=None, rejected=tuple(rejected))


def list_checkpoints(root: Path) -> list[Path]:
    """Checkpoint directories, oldest first, verified or not."""
    found = {int(match[1]): path for path in root.iterdir() if (match := CHECKPOINT_NAME.fullmatch(path.name))}
    return [found[step] for step in sorted(found)]


def find_flaw(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None: every listed file is there, with its size and its hash."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        files = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
        version = manifest["format"]
    except FileNotFoundError:
        return "it has no manifest"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read ({type(error).__name__}: {error})"
    if version != FORMAT:
        return f"its format is {version}, this version reads {FORMAT}"
    present = {file.name for file in path.iterdir()} - {MANIFEST}
    if present != set(files):
        return f"its files are {sorted(present)}, the manifest lists {sorted(files)}"
    for name, (size, digest) in files.items():
        if (path / name).stat().st_size != size:
            return f"{name} has {(path / name).stat().st_size} bytes, the manifest says {size}"
        found = _sha256(path / name)
        if found != digest:
            return f"{name} has hash {found[:12]}, the manifest says {digest[:12]}"
    return None


def prune(root: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and leftovers of incomplete ones."""
    for path in [*list_checkpoints(root)[:-keep], *root.glob(f"{TEMPORARY_PREFIX}*")]:
        _remove(path)


def _seal(folder: Path, step: int) -> None:
    """Sync every file to disk, then the manifest that lists them."""
    files = {}
    for file in sorted(folder.iterdir()):
        if not file.is_file() or file.suffix not in ALLOWED_SUFFIXES:
            raise CheckpointError(
                f"{file.name} is not allowed in a checkpoint: only {', '.join(ALLOWED_SUFFIXES)} files are"
            )
        _force_to_disk(file)
        files[file.name] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"format": FORMAT, "step": step, "files": files}, indent=1))
    _force_to_disk(manifest)
    _force_to_disk(folder)


def _remove(path: Path) -> None:
    """Remove a checkpoint, manifest first, so that an interrupted removal leaves nothing that looks valid."""
    if path.is_dir():
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path)


def _force_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
