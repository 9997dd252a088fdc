"""Ends an engine's processes together with the process that owns them, even if that was killed, and leaves nothing."""

from __future__ import annotations

import os
import select
import threading

from actors.engine.janitor import watch

OWNER_VARIABLE = "VISIONTHINK_ENGINE_OWNER"
"""Environment variable with the owner's process id, inherited by the engine's processes."""


def own_engines() -> None:
    """Make this process the owner of all engines it starts from now on. Nothing of them outlives it."""
    if os.environ.get(OWNER_VARIABLE) != str(os.getpid()):
        watch(os.getpid())
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
        os._exit(1)

    threading.Thread(target=wait_and_leave, name="end-with-owner", daemon=True).start()
