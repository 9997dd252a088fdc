"""Clusters that were started elsewhere: another folder, another token, killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.runtime.addresses import ClusterAddress, find_cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(180)]

ROOT = Path(__file__).resolve().parents[2]
JOIN = """
import os, time
started = time.monotonic()
from actors.errors import VisionThinkError
from cluster.runtime.connect import connect
import ray
try:
    connect()
    print("joined", ray.get(ray.remote(num_cpus=0)(lambda: True).remote()))
except (VisionThinkError, ValueError) as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A head with a token of its own, started in another folder; yields its process and environment."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    folder = Path("/tmp") / f"vt-{os.getpid()}"  # short: sockets lie below
    folder.mkdir()
    token = "a" * 64
    hidden = ("PYTHONPATH", "RAY_ADDRESS", "RAY_AUTH_MODE")
    plain = {name: value for name, value in os.environ.items() if name not in hidden}
    environment = {**plain, "RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    ray_command = str(Path(sys.executable).with_name("ray"))
    options = ["--head", "--port=0", "--num-cpus=1", "--include-dashboard=false", "--block"]
    process = subprocess.Popen(
        [ray_command, "start", *options], cwd=elsewhere, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process, environment
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        subprocess.run(["rm", "-rf", str(folder)], check=False)


def address_of(environment: dict[str, str]) -> ClusterAddress:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (found := find_cluster(environment)) is not None:
            return found
        time.sleep(0.2)
    pytest.fail("the head wrote no note of itself")


def join(environment: dict[str, str]) -> tuple[str, float]:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", JOIN], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip(), time.monotonic() - started


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
