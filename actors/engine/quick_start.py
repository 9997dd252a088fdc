"""Starts a rollout worker with less work, as on a CPU it is taken from the engines that play.

On a CPU and in a Ray actor vLLM starts a new Python for an engine's process, which imports once more what the worker
has imported: half the work of the start. Where an engine has one thread, its process is a fork of the worker instead.
Ray's threads are not in it: nothing in it may call Ray.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import stat
import sys
from collections.abc import Iterator

from configs.schema import RolloutConfig

START_METHOD = "VLLM_WORKER_MULTIPROC_METHOD"
ENGINE_TITLE = "VLLM::EngineCore"
LAST_STREAM = 2

_is_engine_starting = False


def can_fork(rollout: RolloutConfig) -> bool:
    """Neither a GPU nor several threads of OpenMP survive a fork."""
    return rollout.num_gpus == 0 and rollout.num_threads == 1


@contextlib.contextmanager
def engine_forked(rollout: RolloutConfig) -> Iterator[None]:
    """Within, vLLM forks an engine's process where `can_fork`, whatever `engine_config` has made it set."""
    global _is_engine_starting
    if not can_fork(rollout):
        yield
        return
    from vllm.utils import system_utils

    _watch_forks()
    before = os.environ.get(START_METHOD, "spawn"), system_utils.is_in_ray_actor
    os.environ[START_METHOD], system_utils.is_in_ray_actor = "fork", lambda: False
    _is_engine_starting = True
    try:
        yield
    finally:
        os.environ[START_METHOD], system_utils.is_in_ray_actor = before
        _is_engine_starting = False


@functools.cache
def _watch_forks() -> None:
    def become_an_engine() -> None:
        if _is_engine_starting:
            forgo_collections()
            let_go_of_sockets()
            if "ray._raylet" in sys.modules:  # it has written its titles where vLLM would write this one
                sys.modules["ray._raylet"].setproctitle(ENGINE_TITLE)

    os.register_at_fork(after_in_child=become_an_engine)


def forgo_collections() -> None:
    """Keep collections from what the fork has inherited, a million objects that all stay.

    vLLM collects several times as an engine starts, and when it ends, for which it has all looked through again.
    """
    gc.freeze()
    gc.unfreeze = lambda: None


def let_go_of_sockets() -> None:
    """Put /dev/null in place of each socket of this process, but for its standard streams.

    Ray sees that a worker has ended by its sockets, and a copy in another process would hide it. The numbers stay
    taken, since objects that the fork has inherited may yet close them.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for number in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # the listing's own
            if number > LAST_STREAM and stat.S_ISSOCK(os.fstat(number).st_mode):
                os.dup2(null, number)
    os.close(null)
