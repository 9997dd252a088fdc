"""Jobs of a real dashboard, with a stand-in for the command: what is uploaded, how they end, how they are stopped."""

import json
import shutil
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.jobs.package import START
from cluster.stopping import CONTINUE
from configs.paths import ROOT
from tests.local_ray import ray_on_this_machine

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning"),  # Ray's own client
]

SAVE_S = 4.0
"""Longer than the 3 s after which Ray kills a job by default."""
STAND_IN = f"""
import os, pathlib, signal, sys, time

def save(*_):
    time.sleep({SAVE_S})
    print("stopped by SIGTERM: step 4 is saved; {CONTINUE}", flush=True)
    os._exit(75)

signal.signal(signal.SIGTERM, save)
print("python", sys.executable)
print("files", *sorted(path.name for path in pathlib.Path().rglob("*") if path.suffix in (".py", ".sh", ".key", "")
    and path.is_file()), flush=True)
if sys.argv[1] == "train":
    time.sleep(120)
sys.exit(7)
"""


@pytest.fixture(scope="module")
def dashboard():
    with ray_on_this_machine(include_dashboard=True, dashboard_port=0) as context:
        yield f"http://{context.dashboard_url}"


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = tmp_path / "project"
    (folder / START).parent.mkdir(parents=True)
    shutil.copy(ROOT / START, folder / START)
    (folder / "cluster" / "__init__.py").touch()
    (folder / "cluster" / "cli.py").write_text(STAND_IN)
    for secret in ("judge.key", "id_rsa", ".env"):
        (folder / secret).write_text("secret")
    monkeypatch.chdir(folder)
    return folder


def visionthink(*arguments: str):
    done = CliRunner().invoke(app, [arguments[0], *arguments[1:]])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def test_a_job_ends_as_its_command_did_and_was_given_no_key(dashboard, project):
    import sys

    done = visionthink("submit", "--address", dashboard, "--", "report", "somewhere")
    assert done.exit_code == 7, done.output
    assert f"python {sys.executable}" in done.stdout, "the cluster's own interpreter, which is not on its PATH"
    assert "files __init__.py cli.py start.sh\n" in done.stdout
    assert "ended as FAILED" in done.stderr


def test_a_run_that_is_stopped_has_time_to_save_and_its_folder_is_told(dashboard, project):
    submitted = visionthink("submit", "--address", dashboard, "--detach", "--json", "--", "train", "run.name=a")
    job = json.loads(submitted.stdout)["job"]
    deadline = time.monotonic() + 30
    while "files" not in visionthink("logs", job, "--address", dashboard).stdout:
        assert time.monotonic() < deadline, visionthink("jobs", "--address", dashboard).stdout
        time.sleep(0.3)

    def listed() -> dict:
        jobs = json.loads(visionthink("jobs", "--address", dashboard, "--json").stdout)["jobs"]
        return next(entry for entry in jobs if entry["job"] == job)

    assert (listed()["run"], listed()["state"]) == ("a", "running")
    again = visionthink("submit", "--address", dashboard, "--", "train", "run.name=a")
    assert again.exit_code == 1
    assert f"job {job} trains run 'a' already" in again.stderr

    started = time.monotonic()
    stopped = visionthink("stop", "a", "--wait", "--address", dashboard)
    assert stopped.exit_code == 0
    assert f"step 4 is saved; {CONTINUE}; run folder {Path(project)}/runs/a" in stopped.stderr
    assert SAVE_S <= time.monotonic() - started < SAVE_S + 10
    assert listed()["state"] == "stopped"
    assert visionthink("logs", job, "--follow", "--address", dashboard).exit_code == 75


def test_a_job_that_nobody_submitted_costs_one_line(dashboard):
    for command in ("logs", "stop"):
        done = visionthink(command, "nobody", "--address", dashboard)
        assert done.exit_code == 1
        assert done.stderr == "error: no job or run 'nobody' on this cluster: `visionthink jobs` lists them\n"


def test_a_node_that_is_to_be_preempted_is_known_by_its_drain(dashboard):
    """The last test of this module, whose only node it drains."""
    import ray
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    from cluster.runtime.notices import own_node_drains

    class Stays:
        """Keeps the node from ending, as it does once it drains and has nothing to do."""

        def ready(self) -> bool:
            return True

    stays = ray.remote(num_cpus=0)(Stays).remote()
    assert ray.get(stays.ready.remote(), timeout=60)
    assert not own_node_drains()
    own = ray.get_runtime_context().get_node_id()
    in_a_minute = int((time.time() + 60) * 1000)
    reason = DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    is_accepted, _ = ray._private.worker.global_worker.gcs_client.drain_node(own, reason, "test", in_a_minute)
    assert is_accepted
    deadline = time.monotonic() + 10
    while not own_node_drains():
        assert time.monotonic() < deadline
        time.sleep(0.1)
