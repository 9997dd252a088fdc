"""Replicas of the judges' pool in a real run.

Run it with `pytest -n 0 -s -m slow tests/ray/test_judge_scaling.py`.
"""

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

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(570)]

ROOT = Path(__file__).resolve().parents[2]
MOST = 3
SLOW_S = 15.0
"""Of a call: longer than a replica takes to start, so that the load is still there when it is up."""


def watch(run: subprocess.Popen, until: int, *, within_s: float) -> list[int]:
    """The sizes of the run's pool, one after the other, to the one that is wanted, the run's end or the deadline."""
    sizes, deadline = [], time.monotonic() + within_s
    accept_metrics_interval()
    while run.poll() is None and time.monotonic() < deadline and sizes[-1:] != [until]:
        names = [name for name in serve.status().applications if name.startswith("judges-")]
        size = count_judges(names[0]) if names else None
        if size and sizes[-1:] != [size]:
            sizes.append(size)
            print(f"{size} judges", flush=True)
        time.sleep(0.2)
    return sizes


def test_a_run_with_a_slow_llm_grows_its_pool_and_gives_it_back_when_the_llm_is_quick(tmp_path, monkeypatch):
    shapes = make_shapes(tmp_path / "shapes", train_rows=512, heldout_rows=8, seed=3)
    log = tmp_path / "log"
    with ray_on_this_machine() as context, OpenAIServer(delayed(SLOW_S)) as server, log.open("w") as out:
        monkeypatch.setenv("RAY_ADDRESS", context.address_info["address"])
        settings = [
            f"run.dir={tmp_path}",
            f"data.train={shapes['train']}",
            f"data.heldout={shapes['heldout']}",
            "rollout.group_size=4",
            "train.prompts_per_step=8",
            "learner.prompts_per_mini_batch=8",
            "train.num_steps=1000",  # the test ends it
            "train.checkpoint_every=1000",
            "eval.num_samples=8",
            "judge.chain=[openai]",  # rules settle what this task asks
            "judge.llm.model=scripted",
            f"judge.llm.base_url={server.url}",
            f"judge.max_replicas={MOST}",
            "judge.target_ongoing_requests=2",  # 8 questions make 8 calls at least, which want 4
            "judge.downscale_delay_s=2",
            "judge.start_timeout_s=300",
            "judge.cache=''",
        ]
        command = [sys.executable, "-m", "cluster.cli", "train", *settings]
        run = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
        try:
            grown = watch(run, MOST, within_s=300)
            server.plan = honest
            shrunk = watch(run, 1, within_s=120)
            is_over = run.poll() is not None
        finally:
            run.terminate()
            try:
                run.wait(90)
            except subprocess.TimeoutExpired:
                run.kill()
                run.wait()
    assert not is_over, log.read_text()[-3000:]
    assert (grown[0], grown[-1]) == (1, MOST), (grown, log.read_text()[-3000:])
    assert (shrunk[0], shrunk[-1]) == (MOST, 1), (shrunk, log.read_text()[-3000:])
