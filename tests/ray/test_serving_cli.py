"""`visionthink ask` and `visionthink serve` as they are typed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import ray
from ray import serve

from actors.data import crop
from actors.data.shapes import encode_png
from actors.errors import RolloutError, RunError
from cluster.runtime.connect import connect
from cluster.serving.app import ServeSettings
from cluster.serving.deployment import served
from cluster.serving.gateway import ENVIRONMENT
from configs.load import load_config
from configs.ranges import Range
from tests.ray.serving_parts import draw_rows, make_export

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("default"),  # Ray's own, at its start and end
]


@pytest.fixture
def export(tmp_path):
    return make_export(tmp_path / "export")


COMMAND = (sys.executable, "-m", "cluster.cli")


def test_ask_on_the_command_line(export, tmp_path):
    ((picture, row),) = draw_rows(1)
    (tmp_path / "picture.png").write_bytes(picture)
    ask = [*COMMAND, "ask", str(tmp_path / "picture.png"), row.question, "--policy", str(export)]
    as_json = subprocess.run([*ask, "--resolution", "full", "--json"], capture_output=True, text=True, timeout=200)
    assert as_json.returncode == 0, as_json.stderr
    found = json.loads(as_json.stdout.splitlines()[-1])
    assert (found["answer"], found["status"]) == (row.answer, "answered")
    assert [turn["view"] for turn in found["turns"]] == ["full"]
    told = subprocess.run(ask, capture_output=True, text=True, timeout=200)
    assert told.returncode == 0, told.stderr
    assert "turn 1: quarter view, 16 visual tokens" in told.stdout
    assert "always-full 64" in told.stdout
    assert told.stderr == "", "what the engine logs is not shown"


@pytest.mark.parametrize(
    ("number", "views", "tools"),
    [
        (21, ["quarter", "crop:168,168,224,224"], {"request_local_region": {"calls": 1, "visual_tokens": 4}}),
        (13, ["quarter", "full"], {"resize_image": {"calls": 1, "visual_tokens": 64}}),
    ],
)
def test_ask_plays_each_tool_of_a_policy_on_the_real_engine(tmp_path, number, views, tools):
    """The shipped crop policy finds every way equally likely, within 0.04: these rows lean to the one that is named."""
    rng = np.random.default_rng(0)
    row = [crop.draw_row(rng, "heldout", need="region") for _ in range(36)][number]
    (tmp_path / "picture.png").write_bytes(encode_png(crop.paint(row.scene)))
    ask = [*COMMAND, "ask", str(tmp_path / "picture.png"), row.question, "--config", "tiny_crop", "--json"]
    done = subprocess.run(ask, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["answer"], found["status"]) == (row.answer, "answered")
    assert [turn["view"] for turn in found["turns"]] == views
    assert found["usage"]["tools"] == tools


def health_status(port):
    """Status of /health; None where nobody listens yet."""
    try:
        reply = httpx.get(f"http://127.0.0.1:{port}/health", timeout=5)
    except httpx.TransportError:
        return None
    if reply.status_code == 503:
        assert reply.json()["error"]["code"] == "engine_unavailable"
    return reply.status_code


def test_serve_on_the_command_line_ends_with_its_signal(export):
    """The signal goes to the whole group, as supervisors and `timeout` send it: Ray is needed to end in order."""
    port = 18_735
    command = [*COMMAND, "serve", "--policy", str(export), "--port", str(port)]
    serving = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        deadline_at = time.monotonic() + 200
        while (health := health_status(port)) != 200:
            assert time.monotonic() < deadline_at, health
            assert serving.poll() is None
            time.sleep(0.5)
        assert httpx.get(f"http://127.0.0.1:{port}/v1/models").json()["data"][0]["id"] == "export"
        told_at = time.monotonic()
        os.killpg(serving.pid, signal.SIGTERM)
        errors = serving.communicate(timeout=60)[1]
        seconds = time.monotonic() - told_at
        print(f"ended after {seconds:.1f} s")
        assert serving.returncode == 143
        assert seconds < 20
        assert "was not gone" not in errors
        assert "head has ended" not in errors
    finally:
        serving.kill()
        serving.communicate()


async def fails_to_start(config):
    with Path(os.environ["STARTS"]).open("a") as starts:
        starts.write("once\n")
    raise RolloutError("no memory for this engine")


def test_an_engine_that_fails_is_not_started_again(tmp_path, monkeypatch):
    monkeypatch.setenv("STARTS", str(tmp_path / "starts"))
    monkeypatch.setenv("RAY_ADDRESS", "local")
    connect(ENVIRONMENT)
    limits, one = ServeSettings(model="tiny", created=1), Range(minimum=1, maximum=1)
    try:
        with (
            pytest.raises(RunError, match="the policy's engine failed to start"),
            served(load_config("tiny"), limits, replicas=one, host="127.0.0.1", port=18_736, start=fails_to_start),
        ):
            pass
    finally:
        serve.shutdown()
        ray.shutdown()
    assert (tmp_path / "starts").read_text() == "once\n"
