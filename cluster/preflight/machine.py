"""Checks of this machine and its folders; each problem is one line."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from actors.weights.staging import SHARED_MEMORY

MAX_SOCKET_BYTES = 107
"""Maximum path length of a Unix socket."""
RAY_SOCKET = "session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""Longest socket path in Ray's folder: time in microseconds and the largest process id of Linux."""
ENGINE_SOCKET = "00000000-0000-0000-0000-000000000000"
"""vLLM's sockets are in the temporary folder, each named by a UUID."""
BREAKS_RAY = " \t\n\"'\\"
"""Characters that break the command with which Ray starts a worker."""
QUEUE_BYTES = 240 << 20
"""Shared memory of vLLM's queue to an engine's workers: ten messages of 24 MiB."""
MIB = 1 << 20
_FOLDER_REMEDY = "give a writable folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedMemory:
    """Bytes of the file system under /dev/shm."""

    size: int
    free: int

    @classmethod
    def look_up(cls) -> SharedMemory | None:
        """Current size and free space; None on a machine without /dev/shm."""
        if not SHARED_MEMORY.is_dir():
            return None
        usage = shutil.disk_usage(SHARED_MEMORY)
        return cls(size=usage.total, free=usage.free)


def gpu_bytes() -> int | None:
    """Memory of this machine's smallest GPU; None without a GPU or the library that asks its driver (nvidia-ml-py)."""
    return min(_gpus(), default=None)


def num_gpus() -> int:
    """GPUs of this machine; 0 without the library that asks the driver."""
    return len(_gpus())


def _gpus() -> list[int]:
    """Bytes of memory of each GPU."""
    if importlib.util.find_spec("pynvml") is None:
        return []
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in handles]
    finally:
        pynvml.nvmlShutdown()


def shared_memory_needed(*, weight_bytes: int, uses_queue: bool) -> int:
    """Bytes of /dev/shm for a run on one machine: two versions of the weights (`weight_bytes` each, 0 where they take
    another way), plus the queue of a multi-process engine (on CPU every engine is one)."""
    return 2 * weight_bytes + (QUEUE_BYTES if uses_queue else 0)


def shared_memory_problem(memory: SharedMemory, needed: int) -> str | None:
    if memory.free >= needed:
        return None
    wanted_gib = -(-(needed + memory.size - memory.free) // (1 << 30))
    return (
        f"/dev/shm has {memory.free // MIB} MiB free of {memory.size // MIB}, the run needs {needed // MIB} MiB for "
        f"engines and weights: raise it with `docker run --shm-size={wanted_gib}g`, "
        f"or `mount -o remount,size={wanted_gib}G /dev/shm`"
    )


def socket_problem(ray_folder: Path, temp_folder: Path) -> str | None:
    """Check that the socket paths of Ray and of engines are short enough.

    Args:
        ray_folder: where Ray keeps its sessions.
        temp_folder: of temporary files.
    """
    folders = ((ray_folder, "RAY_TMPDIR or TMPDIR", RAY_SOCKET), (temp_folder, "TMPDIR", ENGINE_SOCKET))
    for folder, name, socket in folders:
        room, length = MAX_SOCKET_BYTES - len(socket) - 1, len(os.fsencode(folder))
        if length > room:
            return (
                f"{str(folder)!r} is too long for sockets ({length} bytes, at most {room}): "
                f"set {name} to a shorter path, such as /tmp"
            )
    return None


def launch_path_problem(interpreter: str, ray_package: str, ray_folder: str) -> str | None:
    """Check the paths in the command with which Ray starts a worker."""
    for path in (interpreter, ray_package, ray_folder):
        if wrong := next((sign for sign in path if sign in BREAKS_RAY), None):
            shown = {" ": "a space", "\t": "a tab", "\n": "a line break"}.get(wrong, wrong)
            return (
                f"{path!r} contains {shown}, and Ray cannot start workers from such a path: "
                f"move the project (or its environment) to a path without it"
            )
    return None


def folder_problem(key: str, path: str) -> str | None:
    """Check that a folder can be created and written to, by doing so and removing it again.

    Args:
        key: setting that holds the path.
    """
    folder = Path(path)
    there = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    if not there.is_dir():
        what = "a file" if there.exists() else "a link to nothing"
        return f"{key}={path!r} is invalid: {there} is {what}; {_FOLDER_REMEDY}"
    made: list[Path] = []
    try:
        for parent in reversed([parent for parent in (folder, *folder.parents) if not parent.exists()]):
            parent.mkdir()
            made.append(parent)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"{key}={path!r} is invalid: it cannot be written to ({error.strerror}); {_FOLDER_REMEDY}"
    finally:
        for parent in reversed(made):
            with contextlib.suppress(OSError):
                parent.rmdir()
