"""Ends an engine's processes together with the process that owns them, even if that was killed, and leaves nothing.

What vLLM's processes share (a message queue of 160 MiB) has names in /dev/shm. Python's resource tracker would remove
them, but is killed as well where Ray ends a whole process group.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from pathlib import Path

OWNER_VARIABLE = "VISIONTHINK_ENGINE_OWNER"
"""Environment variable with the owner's process id, inherited by the engine's processes."""


SHARED = ("/dev/shm/psm_", "/dev/shm/sem.mp-")
"""Shared memory and semaphores of Python's multiprocessing."""


def own_engines() -> None:
    """Make this process the owner of all engines it starts from now on."""
    os.environ[OWNER_VARIABLE] = str(os.getpid())


def end_with_owner() -> None:
    """Exit when the owner has ended. Called in the engine's processes; does nothing without an owner."""
    owner = os.environ.get(OWNER_VARIABLE)
    if owner is None:
        return
    try:
        owner_handle = os.pidfd_open(int(owner))
    except ProcessLookupError:
        os._exit(1)

    def wait_and_leave() -> None:
        select.select([owner_handle], [], [])
        remove_shared_names()
        os._exit(1)

    threading.Thread(target=wait_and_leave, name="end-with-owner", daemon=True).start()


def remove_shared_names() -> None:
    """Remove the names of what this process shares with others: only of what it has mapped, so nobody else's."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        _, _, path = line.partition("/dev/shm/")
        if f"/dev/shm/{path}".startswith(SHARED):
            with contextlib.suppress(OSError):
                os.unlink(f"/dev/shm/{path}")
