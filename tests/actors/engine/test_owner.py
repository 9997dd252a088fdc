"""An engine's process whose owner was killed ends, and leaves no name in shared memory but those of others."""

import os
import signal
import subprocess
import sys
from multiprocessing import shared_memory
from pathlib import Path

from actors.engine.owner import OWNER_VARIABLE
from configs.paths import ROOT

ENGINE = """
import sys, time
from multiprocessing import resource_tracker, shared_memory
from actors.engine.owner import end_with_owner
resource_tracker.register = lambda *_: None  # as if the tracker were killed
end_with_owner()
segment = shared_memory.SharedMemory(create=True, size=64)
print(segment.name, flush=True)
time.sleep(60)
"""


def test_an_engine_whose_owner_was_killed_leaves_nothing_of_its_own():
    owner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    other = shared_memory.SharedMemory(create=True, size=64)
    environment = {**os.environ, OWNER_VARIABLE: str(owner.pid)}
    engine = subprocess.Popen(
        [sys.executable, "-c", ENGINE], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert engine.stdout is not None
        segment = Path("/dev/shm") / engine.stdout.readline().strip()
        assert segment.is_file()
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
        assert engine.wait(timeout=10) == 1
        assert not segment.exists()
        assert (Path("/dev/shm") / other.name).exists()
    finally:
        engine.kill()
        engine.communicate()
        other.close()
        other.unlink()
