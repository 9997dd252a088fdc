"""A killed owner of engines takes them along, and leaves no name in shared memory but those of others."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing import shared_memory
from pathlib import Path

import psutil
import pytest

from configs.paths import ROOT

OWNER = """
import subprocess, sys, time
from actors.engine.owner import own_engines
own_engines()
engine = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
print(engine.stdout.readline().strip(), flush=True)
time.sleep(60)
"""
ENGINE = """
import multiprocessing, time
from multiprocessing import resource_tracker, shared_memory
resource_tracker.register = lambda *_: None  # it is killed as well
SHARED
time.sleep(60)
"""
SEGMENT = "segment = shared_memory.SharedMemory(create=True, size=64); print(segment.name, flush=True)"
SEMAPHORE = """
lock = multiprocessing.get_context("spawn").Lock(); print("sem." + lock._semlock.name[1:], flush=True)
"""


@pytest.mark.parametrize("shared", [SEGMENT, SEMAPHORE], ids=["memory", "semaphore"])
def test_an_owner_that_is_killed_with_its_engines_leaves_nothing_of_theirs(shared):
    other = shared_memory.SharedMemory(create=True, size=64)
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, ENGINE.replace("SHARED", shared)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert owner.stdout is not None
        segment = Path("/dev/shm") / owner.stdout.readline().strip()
        assert segment.is_file()
        time.sleep(3)  # seen once a second
        for child in psutil.Process(owner.pid).children():  # as Ray does where it ends a worker itself
            child.kill()
        os.killpg(owner.pid, signal.SIGKILL)  # all of them at once, as Ray does where a worker was killed
        owner.wait()
        deadline = time.monotonic() + 20
        while segment.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not segment.exists()
        assert (Path("/dev/shm") / other.name).exists()
    finally:
        owner.kill()
        owner.communicate()
        other.close()
        other.unlink()
