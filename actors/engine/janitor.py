"""Removes the names in /dev/shm of an engine's processes once the process that owns them has ended, however it did.

    python -I actors/engine/janitor.py PID

vLLM shares message queues of hundreds of MiB. Python's resource tracker would remove them, but Ray ends a killed
worker's whole process group and the tracker with it. So this runs in a session of its own, and imports nothing of ours.
It only removes what it has seen mapped by the owner or one of its descendants, so nobody else's.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from pathlib import Path

FOLDER = "/dev/shm/"
PREFIXES = ("psm_", "sem.mp-")
"""Shared memory and semaphores of Python's multiprocessing."""
START_S = 60.0
POLL_S = 1.0
LAST_BREATH_S = 1.0
"""For the engine's processes to end after their owner."""


def watch(pid: int) -> None:
    """Start a janitor for this process, and no child of it: where Ray ends a worker, it kills the children first."""
    command = [sys.executable, "-I", str(Path(__file__).resolve()), str(pid)]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(command, start_new_session=True, check=True, timeout=START_S, **quiet)  # type: ignore[call-overload]


def clean_up_after(owner: int) -> None:
    """Wait for the owner's end, then remove the names."""
    try:
        handle = os.pidfd_open(owner)
    except ProcessLookupError:
        return
    names: set[str] = set()
    while not select.select([handle], [], [], POLL_S)[0]:
        names |= names_of({inode for pid in (owner, *descendants(owner)) for inode in mapped_inodes(pid)})
    time.sleep(LAST_BREATH_S)
    for name in names:
        with contextlib.suppress(OSError):
            os.unlink(FOLDER + name)


def descendants(pid: int) -> set[int]:
    """Children of all its threads, and theirs."""
    found: set[int] = set()
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{thread}/children").read_text(encoding="ascii").split():
                found |= {int(child), *descendants(int(child))}
    return found


def mapped_inodes(pid: int) -> set[int]:
    """Of the files in /dev/shm that a process has mapped; none if it is gone.

    A semaphore's own maker has mapped it under another name, which is gone by then.
    """
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    fields = (line.split(maxsplit=5) for line in lines if FOLDER in line)  # range, access, offset, device, inode, path
    return {int(field[4]) for field in fields}


def names_of(inodes: set[int]) -> set[str]:
    """Names of the shared memory and semaphores that these are."""
    with os.scandir(FOLDER) as entries:
        return {entry.name for entry in entries if entry.name.startswith(PREFIXES) and entry.inode() in inodes}


if __name__ == "__main__" and os.fork() == 0:
    clean_up_after(int(sys.argv[1]))
