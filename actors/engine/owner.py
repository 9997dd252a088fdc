"""An engine's processes end with the process that owns them, even one that was killed and could not tell them to."""

from __future__ import annotations

import os
import select
import threading

OWNER_VARIABLE = "VISIONTHINK_ENGINE_OWNER"
"""Environment variable that the engine's processes inherit: the process id of their owner."""


def own_engines() -> None:
    """Make this process the owner of the engines that it starts from now on."""
    os.environ[OWNER_VARIABLE] = str(os.getpid())


def end_with_owner() -> None:
    """Leave when the owner is gone. Called in a process of the engine; without an owner nothing happens."""
    owner = os.environ.get(OWNER_VARIABLE)
    if owner is None:
        return
    try:
        owner_handle = os.pidfd_open(int(owner))
    except ProcessLookupError:
        os._exit(1)

    def wait_and_leave() -> None:
        select.select([owner_handle], [], [])
        os._exit(1)

    threading.Thread(target=wait_and_leave, name="end-with-owner", daemon=True).start()
