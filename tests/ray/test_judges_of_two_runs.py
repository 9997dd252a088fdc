"""Runs that share a cluster share its Serve, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest
from ray import serve

from judge.deployment import accept_metrics_interval

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(240)]

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import asyncio, sys
import ray
from cluster.launch import connect
from judge.deployment import delete_application, deploy_judges
from judge.pool import JudgePool
from judge.verdict import Verdict
from tests.judge.test_deployment import OPENAI, Slow, request

async def main(name, num_groups):
    handle = deploy_judges(OPENAI, name, make=Slow)
    pool = JudgePool(handle, OPENAI)
    for number in range(num_groups):
        for outcome in await pool.grade(request(f"{name} {number}", "red")):
            assert isinstance(outcome, Verdict), outcome
    assert pool.counters.num_retries == 0, pool.counters
    handle.close()

connect()
asyncio.run(main(sys.argv[1], int(sys.argv[2])))
delete_application(sys.argv[1])
ray.shutdown()
"""


def test_runs_start_at_the_same_moment_and_end_without_each_other(local_ray, monkeypatch):
    """Serve is not up yet, all of them want to start it, and two end while the third still judges."""
    monkeypatch.setenv("RAY_ADDRESS", local_ray.address_info["address"])
    runs = [
        subprocess.Popen([sys.executable, "-c", RUN, name, num_groups], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for name, num_groups in (("long", "60"), ("short", "2"), ("other", "2"))
    ]
    try:
        errors = [run.communicate(timeout=180)[1] for run in runs]
    finally:
        for run in runs:
            run.kill()
            run.wait()
    for run, error in zip(runs, errors, strict=True):
        assert run.returncode == 0, error[-3000:]
    accept_metrics_interval()
    assert serve.status().applications == {}
    assert serve.status().proxies, "an LLM judge of a later run needs them"
