"""Starts Ray in this process: what its start must not do to the process, and a second try."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import threading
from collections.abc import Iterator

import psutil
import ray
from ray._private import services

from actors.errors import RunError

SLOW_START = "timed out during startup"
"""What Ray says, in a bare Exception, where its raylet has not registered within 30 seconds."""
END_S = 5.0

logger = logging.getLogger(__name__)


def start_ray(**settings: object) -> object:
    """`ray.init`, and once more where Ray's own raylet does not come up.

    On a busy machine a raylet now and then ends before its first line of log, and Ray waits 30 s for it. The next one
    comes up at once.
    """
    before = set(_children())
    first = _SlowStart()
    with first:
        return ray.init(**settings)
    logger.warning("Ray did not come up within 30 s; starting it again")
    _end([child for child in _children() if child not in before])
    return ray.init(**settings)


class _SlowStart:
    """Swallows the error of a start that took too long, and no other."""

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        return kind is Exception and SLOW_START in str(error)


def _children() -> list[psutil.Process]:
    children: list[psutil.Process] = psutil.Process().children()
    return children


def _end(processes: list[psutil.Process]) -> None:
    """What a failed start has left behind: Ray itself would end it with this process."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=END_S)


@contextlib.contextmanager
def signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM over when it starts in the body, to exit on the spot: it is given back to this process."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Ray leaves signals alone there
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as exit_:
        if exit_.code != signal.SIGTERM:
            raise
        signal.signal(signal.SIGTERM, handler)
        os.kill(os.getpid(), signal.SIGTERM)
        raise RunError("stopped while Ray was starting") from None
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def groups_of_their_own() -> Iterator[None]:
    """What Ray starts in the body gets none of the signals for this terminal or process group.

    `timeout`, supervisors and terminals tell a whole group. Ray's own processes would end at once, and a run could
    not save, nor an endpoint finish its requests. They end with this process still: Ray has the kernel see to that.
    They stay in the session: Linux shares cores out between sessions, and a busy terminal would take half of them.
    """
    plain = services.ConsolePopen
    services.ConsolePopen = functools.partial(plain, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = plain
