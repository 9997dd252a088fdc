"""Clusters that were started elsewhere: another folder, another token, killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from actors.errors import RunError
from cluster.runtime.addresses import ClusterAddress, find_cluster, is_loopback
from cluster.runtime.exposure import refuse_open_dashboard
from learner.host import free_port

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

LISTEN = """
import json
import psutil
from cluster.runtime.connect import connect
import ray
connect()

class Rank:
    def address(self):
        from learner.host import own_address
        return own_address()

address = ray.get(ray.remote(num_cpus=0)(Rank).remote().address.remote())
me = psutil.Process()
ports = [
    (process.name(), end.laddr.ip)
    for process in (me, *me.children(recursive=True))
    for end in process.net_connections(kind="inet")
    if end.status == "LISTEN"
]
print(json.dumps({"ports": ports, "address": address}))
ray.shutdown()
"""


@contextmanager
def running_head(folder: Path, *options: str, **auth: str) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    """A head that was started in another folder; yields its process and environment."""
    folder.mkdir()
    hidden = ("PYTHONPATH", "RAY_ADDRESS", "RAY_AUTH_MODE", "VISIONTHINK_ALLOW_OPEN_CLUSTER")
    plain = {name: value for name, value in os.environ.items() if name not in hidden}
    environment = {**plain, "RAY_TMPDIR": str(folder), **auth}
    ray_command = str(Path(sys.executable).with_name("ray"))
    options = ("--head", "--port=0", "--num-cpus=1", "--dashboard-agent-listen-port=0", "--block", *options)
    process = subprocess.Popen(
        [ray_command, "start", *options], cwd=folder, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process, environment
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        subprocess.run(["rm", "-rf", str(folder)], check=False)


@pytest.fixture(scope="module")
def head():
    """A head with a token of its own."""
    folder = Path("/tmp") / f"vt-{os.getpid()}"  # short: sockets lie below
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}
    with running_head(folder, "--include-dashboard=false", **token) as started:
        yield started


def address_of(environment: dict[str, str]) -> ClusterAddress:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (found := find_cluster(environment)) is not None:
            return found
        time.sleep(0.2)
    pytest.fail("the head wrote no note of itself")


def status_of(url: str) -> int:
    """Of the answer to a request without a token, once there is one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            return requests.get(url, timeout=5).status_code
        except requests.ConnectionError:
            time.sleep(0.3)
    pytest.fail("the dashboard did not come up")


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


@pytest.mark.parametrize("mode", ["disabled", "token"])
def test_a_head_that_others_can_reach_is_joined_and_given_jobs_only_if_it_asks_for_a_token(mode):
    """Its dashboard listens on all interfaces. What is opted out of is joined all the same."""
    port = free_port()
    auth = {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": "c" * 64}
    options = ("--include-dashboard=true", "--dashboard-host=0.0.0.0", f"--dashboard-port={port}")
    with running_head(Path("/tmp") / f"vt-{os.getpid()}-{mode}", *options, **auth) as (_, environment):
        address = address_of(environment)
        if is_loopback(address.host):
            pytest.skip("this machine has no other address than loopback")
        url = f"http://{address.host}:{port}"
        status = status_of(f"{url}/api/jobs/")
        told, _ = join({**environment, "RAY_ADDRESS": str(address)})
        if mode == "token":
            assert status == 401, "a job that is submitted without the token is refused"
            assert told == "joined True"
            refuse_open_dashboard(url)
            return
        assert told.startswith(f"RunError the Ray cluster at {address}")
        assert "asks for no token" in told
        assert "RAY_AUTH_MODE=token" in told
        with pytest.raises(RunError, match=rf"dashboard at {url} asks for no token"):
            refuse_open_dashboard(url)
        allowed = {"RAY_ADDRESS": str(address), "VISIONTHINK_ALLOW_OPEN_CLUSTER": "1"}
        assert join({**environment, **allowed})[0] == "joined True"


def test_a_head_of_our_own_listens_on_this_machine_alone():
    """Ray's processes, and those that it starts for a run."""
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    done = subprocess.run(
        [sys.executable, "-c", LISTEN], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {"gcs_server", "raylet"} <= {name for name, _ in found["ports"]}
    assert [entry for entry in found["ports"] if entry[1].removeprefix("::ffff:") != "127.0.0.1"] == []
    assert found["address"] == "127.0.0.1", "where the learner's ranks meet"


def test_a_head_that_was_killed_is_told_with_the_way_to_clear_its_note(head):
    process, environment = head
    address = address_of(environment)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    told, seconds = join(environment)
    assert told.startswith(f"RunError no Ray cluster responds at {address}")
    assert "`ray stop` clears this note" in told
    assert seconds < 20
