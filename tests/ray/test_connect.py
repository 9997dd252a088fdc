"""Clusters that were started elsewhere: another folder, another token, killed. And one that the command starts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.ray.heads import ROOT, address_of, join, running_head

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def head():
    """A head with a token of its own."""
    folder = Path("/tmp") / f"vt-{os.getpid()}"  # short: sockets lie below
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}
    with running_head(folder, "--include-dashboard=false", **token) as started:
        yield started


def test_a_head_that_was_started_in_another_folder_is_joined(head):
    _, environment = head
    address_of(environment)
    deadline = time.monotonic() + 60
    told = ""
    while told != "joined True" and time.monotonic() < deadline:
        told, _ = join(environment)  # the head leaves its note before it is wholly up
    assert told == "joined True"


@pytest.mark.parametrize("token", [None, "b" * 64])
def test_a_driver_without_the_token_is_told_how_to_get_it(head, token):
    _, environment = head
    theirs = {name: value for name, value in environment.items() if not name.startswith("RAY_")}
    theirs |= {"RAY_ADDRESS": str(address_of(environment)), "RAY_TMPDIR": "/tmp/none", "HOME": "/nowhere"}
    if token:
        theirs |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    told, seconds = join(theirs)
    assert told.startswith("RunError the Ray cluster at ")
    assert "requires a token: set RAY_AUTH_MODE=token" in told
    assert "\n" not in told
    assert seconds < 20, "starting Python and importing Ray included"


def test_a_head_that_was_killed_is_told_with_the_way_to_clear_its_note(head):
    process, environment = head
    address = address_of(environment)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    told, seconds = join(environment)
    assert told.startswith(f"RunError no Ray cluster responds at {address}")
    assert "`ray stop` clears this note" in told
    assert seconds < 20


COMMAND = """
import signal, sys
import ray
from cluster.runtime.connect import connect
connect()
told = []
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, lambda number, frame: told.append(number))
square = ray.remote(num_cpus=0)(lambda number: number * number)
print(ray.get(square.remote(3)), flush=True)
for line in sys.stdin:
    print(len(told), ray.get(square.remote(int(line)), timeout=20), flush=True)
"""


def test_a_signal_to_the_whole_group_leaves_the_ray_that_a_command_started_until_the_command_has_ended():
    """As `timeout`, a supervisor or a closing terminal sends it: what is still to be saved needs Ray."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = subprocess.Popen(
        [sys.executable, "-c", COMMAND], cwd=ROOT, env={**environment, "RAY_ADDRESS": "local"}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        assert command.stdout.readline() == "9\n"
        rays = psutil.Process(command.pid).children(recursive=True)
        assert {"gcs_server", "raylet"} <= {process.name() for process in rays}
        for count, number in enumerate((signal.SIGTERM, signal.SIGHUP, signal.SIGINT), 1):
            os.killpg(command.pid, number)
            time.sleep(1)  # Ray's processes would end by then
            command.stdin.write(f"{count}\n")
            command.stdin.flush()
            assert command.stdout.readline() == f"{count} {count * count}\n", number.name
    finally:
        command.kill()
        command.communicate()
    _, left = psutil.wait_procs(rays, timeout=150)  # its agents first look for the dead raylet's last words
    assert left == []
