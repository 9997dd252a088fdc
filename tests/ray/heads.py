"""Heads that were started elsewhere, and drivers that want to join them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.runtime.addresses import ClusterAddress, find_cluster

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
