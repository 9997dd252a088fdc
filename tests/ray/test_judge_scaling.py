"""Replicas of the judges' pool in a real run: `pytest -m slow tests/ray/test_judge_scaling.py`."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray import serve

from actors.data.shapes import make_shapes
from judge.deployment import accept_metrics_interval, count_judges
from tests.judge.openai_server import OpenAIServer, delayed, honest
from tests.local_ray import ray_on_this_machine

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
MOST = 3


def num_judges() -> int | None:
    """Of the one run on this cluster; None before its pool is up and after its end."""
    accept_metrics_interval()
    names = [name for name in serve.status().applications if name.startswith("judges-")]
    return count_judges(names[0]) if names else None


def watch(run: subprocess.Popen, until, *, within_s: float) -> list[int]:
    """The sizes of the pool, one after the other, until one is as wanted, the run ends or time is over."""
    sizes, deadline = [], time.monotonic() + within_s
    while run.poll() is None and time.monotonic() < deadline:
        size = num_judges()
        if size is not None and sizes[-1:] != [size]:
            sizes.append(size)
            print(f"{size} judges", flush=True)
        if size is not None and until(size):
            break
        time.sleep(0.2)
    return sizes


def test_a_run_with_a_slow_llm_grows_its_pool_and_gives_it_back_when_the_llm_is_quick(tmp_path, monkeypatch):
    shapes = make_shapes(tmp_path / "shapes", train_rows=512, heldout_rows=8, seed=3)
    with ray_on_this_machine() as context, OpenAIServer(delayed(3.0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", context.address_info["address"])
        settings = [
            f"run.dir={tmp_path}",
            f"data.train={shapes['train']}",
            f"data.heldout={shapes['heldout']}",
            "train.num_steps=30",
            "judge.chain=[openai]",  # rules settle what this task asks
            "judge.llm.model=scripted",
            f"judge.llm.base_url={server.url}",
            f"judge.max_replicas={MOST}",
            "judge.target_ongoing_requests=4",
            "judge.downscale_delay_s=2",
            "judge.cache=''",
        ]
        command = [sys.executable, "-m", "cluster.cli", "train", "--json", *settings]
        run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            grown = watch(run, lambda size: size == MOST, within_s=240)
            server.plan = honest
            shrunk = watch(run, lambda size: size == 1, within_s=60)
            assert grown[-1] == MOST, run.communicate(timeout=60)[1][-3000:] if run.poll() else grown
            assert 1 in grown[:-1], "it began with one"
            assert shrunk[-1] == 1
            assert run.poll() is None, "it shrank while the run went on"
        finally:
            run.terminate()
            run.communicate(timeout=120)
