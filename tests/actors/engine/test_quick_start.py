"""An engine's process that is forked off a rollout worker, and what it lets go of."""

import os
import select
import signal
import socket
import subprocess
import sys

import pytest

from actors.engine.engine_config import set_engine_environment
from actors.engine.quick_start import can_fork
from configs.paths import ROOT
from configs.schema import RolloutConfig

WORKER = """
import os, signal, socket, sys, time
from actors.engine.engine_config import set_engine_environment
from actors.engine.quick_start import let_go_of_sockets
ray = socket.socket(fileno=int(sys.argv[1]))
if os.fork() == 0:
    let_go_of_sockets()
    print(os.readlink(f"/proc/self/fd/{ray.fileno()}"), flush=True)
    time.sleep(60)
signal.pause()
"""


def test_whoever_is_connected_to_a_worker_sees_its_end_though_the_fork_lives():
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            worker = subprocess.Popen(
                [sys.executable, "-c", WORKER, str(theirs.fileno())], pass_fds=[theirs.fileno()],
                cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True,
            )  # fmt: skip
        try:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "/dev/null\n"
            assert not select.select([ours], [], [], 0.1)[0], "the worker lives"
            worker.kill()
            worker.wait()
            assert select.select([ours], [], [], 10)[0]
            assert ours.recv(1) == b""
            os.killpg(worker.pid, 0)  # the fork lives
        finally:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.communicate()


def test_what_a_fork_inherits_is_never_collected_even_where_vllm_would_thaw_it():
    program = (
        "import gc\n"
        "from actors.engine.quick_start import forgo_collections\n"
        "inherited = []\n"
        "forgo_collections()\n"
        "own = []\n"
        "gc.unfreeze()\n"
        "seen = gc.get_objects()\n"
        "print(any(each is own for each in seen), any(each is inherited for each in seen))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "True False\n", done.stderr


def test_only_an_engine_that_survives_it_is_forked():
    assert can_fork(RolloutConfig(num_threads=1))
    assert not can_fork(RolloutConfig(num_threads=2))
    assert not can_fork(RolloutConfig(num_gpus=1))


@pytest.mark.parametrize(
    ("settings", "compiles"),
    [({}, False), ({"enforce_eager": False}, True), ({"num_gpus": 1}, True)],
    ids=["eager on a CPU", "compiled on a CPU", "on a GPU"],
)
def test_only_an_eager_cpu_engine_compiles_nothing(monkeypatch, settings, compiles):
    environment: dict[str, str] = {}
    monkeypatch.setattr("actors.engine.engine_config.own_engines", lambda: None)
    monkeypatch.setattr(os, "environ", environment)
    set_engine_environment(RolloutConfig(**settings))
    assert ("TORCHDYNAMO_DISABLE" not in environment) == compiles
