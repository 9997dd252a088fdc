"""Who can reach a cluster: this machine alone, or others that have its token."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from actors.errors import RunError
from cluster.runtime.addresses import is_loopback
from cluster.runtime.exposure import refuse_open_dashboard
from learner.host import free_port
from tests.ray.heads import ROOT, address_of, join, running_head

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

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


def status_of(url: str) -> int:
    """Of the answer to a request without a token, once there is one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            return requests.get(url, timeout=5).status_code
        except requests.ConnectionError:
            time.sleep(0.3)
    pytest.fail("the dashboard did not come up")


@pytest.mark.parametrize("mode", ["token", pytest.param("disabled", marks=pytest.mark.slow)])
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
