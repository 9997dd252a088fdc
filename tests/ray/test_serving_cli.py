"""`visionthink ask` and `visionthink serve` as they are typed."""

import json
import subprocess
import sys
import time

import httpx
import pytest

from tests.ray.serving_parts import draw_rows, make_export

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


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


def test_serve_on_the_command_line_ends_with_its_signal(export):
    port = 18_735
    serving = subprocess.Popen([*COMMAND, "serve", "--policy", str(export), "--port", str(port)])
    try:
        deadline_at = time.monotonic() + 200
        while True:
            try:
                assert httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).json() == {"status": "ok"}
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline_at
                assert serving.poll() is None
                time.sleep(0.5)
        assert httpx.get(f"http://127.0.0.1:{port}/v1/models").json()["data"][0]["id"] == "export"
        serving.terminate()
        assert serving.wait(60) == 143
    finally:
        serving.kill()
