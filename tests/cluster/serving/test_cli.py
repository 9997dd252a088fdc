"""What `visionthink ask` shows, played by a scripted engine, and what both commands refuse before anything starts."""

import contextlib
import gc
import json
import os
import signal
from functools import partial

import pytest
from typer.testing import CliRunner

from actors.errors import RunError
from cluster.cli import app
from cluster.runtime import connect
from cluster.serving import cli, deployment, policy
from cluster.serving.cli import _engine_log
from cluster.stopping import Stopping
from tests.cluster.serving.endpoint import LOOK, ScriptedEngine, encoded, policy_of
from tests.cluster.serving.test_tools import OUTSIDE, RED, REGION


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Runs the command about a red picture."""
    picture = tmp_path / "picture.png"
    picture.write_bytes(encoded("red"))
    engines, script = [], ()

    async def start(config):
        engines.append(ScriptedEngine())
        os.write(2, b"the engine says a lot\n")
        engines[-1].script = script
        return policy_of(engines[-1], config.rollout)

    monkeypatch.setattr(policy, "start_policy", start)

    def run(*arguments, says=()):
        nonlocal script
        script = says
        done = CliRunner().invoke(app, ["ask", str(picture), *arguments])
        assert all(engine.is_shut_down for engine in engines)
        return done

    return run


def test_both_turns_are_shown_and_what_they_cost(ask, capfd):
    done = ask(f"which colour, seen {LOOK}?")
    assert done.exit_code == 0, done.output
    lines = [line for line in done.stdout.splitlines() if line]
    assert lines[:6] == [
        "starting the engine",
        "turn 1: quarter view, 16 visual tokens",
        "unclear",
        "calls resize_image",
        "turn 2: full view, 64 visual tokens",
        "clear é",
    ]
    assert lines[6] == "red"
    assert "80 visual tokens, always-full 64: 16 more" in " ".join(lines[7:])
    assert "the engine says" not in done.output + "".join(capfd.readouterr())


CROPS = ("rollout.tools.names=request_local_region", "rollout.tools.max_turns=3", "rollout.tools.on_wrong_call=reply")
LONG = ("rollout.max_turn_tokens=128", "rollout.max_prompt_tokens=1024")


def test_the_turns_of_other_tools_are_shown(ask):
    done = ask("which colour?", *CROPS, *LONG, says=(OUTSIDE, REGION, RED))
    assert done.exit_code == 0, done.output
    lines = [line for line in done.stdout.splitlines() if line]
    why_not = "why not: the box must lie inside the picture: x from 0 to 112, y from 0 to 112"
    assert lines[3:5] == ["calls what it may not", f"turn 2: {why_not}"]
    assert lines[6:8] == ["calls request_local_region", "turn 3: crop:56,56,112,112 view, 4 visual tokens"]
    assert "request_local_region called once: 20 visual tokens" in " ".join(lines)


def test_why_a_reply_is_malformed_is_told(ask):
    done = ask("which colour?", *CROPS, *LONG, says=(REGION,) * 3)
    told = "malformed (turn 3 is the last one and must answer); request_local_region called 2 times"
    assert told in " ".join(done.stdout.split())
    found = ask("which colour?", *CROPS, *LONG, "--json", says=(OUTSIDE, RED)).stdout.splitlines()[-1]
    faults = [turn["fault"] for turn in json.loads(found)["turns"]]
    assert faults == ["the box must lie inside the picture: x from 0 to 112, y from 0 to 112", None]


def test_a_crop_as_json(ask):
    found = json.loads(ask("which colour?", *CROPS, *LONG, "--json", says=(REGION, RED)).stdout.splitlines()[-1])
    assert [(turn["view"], turn["tool"], turn["visual_tokens"]) for turn in found["turns"]] == [
        ("quarter", None, 16),
        ("crop:56,56,112,112", "request_local_region", 4),
    ]
    assert found["usage"]["tools"] == {"request_local_region": {"calls": 1, "visual_tokens": 4}}


def test_as_json(ask):
    found = json.loads(ask("which colour?", "--json").stdout.splitlines()[-1])
    assert (found["answer"], found["reasoning"], found["status"]) == ("red", "clear é", "answered")
    assert [turn["view"] for turn in found["turns"]] == ["quarter"]
    assert found["usage"]["visual_tokens"] == {"spent": 16, "always_full": 64, "saved": 48}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["x", "--resolution", "half"], "must be auto, quarter, full"),
        (["x", "--policy", "/nowhere"], "holds no policy"),
        (["why? " * 1000], "exceeds rollout.max_prompt_tokens"),
    ],
)
def test_what_cannot_be_asked_is_one_line(ask, arguments, reason):
    done = ask(*arguments)
    assert done.exit_code == 1
    assert reason in " ".join(done.output.split())


def test_the_log_of_the_engine_stays_only_if_something_failed(capfd, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with _engine_log():
        os.write(2, b"noise\n")
    assert list(tmp_path.iterdir()) == []

    def fail():
        with _engine_log():
            os.write(2, b"why it broke\n")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    (log,) = tmp_path.iterdir()
    assert log.read_text() == "why it broke\n"
    assert log.name in "".join(capfd.readouterr().err.split("\n"))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--api-key-file", "/nowhere"], "cannot be read"),
        (["--replicas", "0"], "--replicas"),
        (["--replicas", "4..1"], "--replicas"),
        (["--policy", "/nowhere"], "holds no policy"),
    ],
)
def test_what_cannot_be_served_is_one_line(arguments, reason):
    done = CliRunner().invoke(app, ["serve", *arguments])
    assert done.exit_code == 1
    assert reason in " ".join(done.output.split())


@pytest.mark.parametrize("is_up", [False, True])
def test_a_signal_ends_what_is_served_and_what_waits_for_its_engine(is_up, monkeypatch, caplog):
    """Left waiting, the thread that starts it would clean up once Python has ended, and hang."""
    steps = []

    @contextlib.contextmanager
    def served(config, settings, *, stop, **where):
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            if not is_up:
                assert stop.wait(20)
                raise RunError("stopped before an engine was up")
            yield "http://127.0.0.1:1"
        finally:
            steps.append("cleaned up")

    monkeypatch.setattr(deployment, "served", served)
    # Its watchdog outlives the command, to end a process that hangs on its way out: not this one.
    monkeypatch.setattr(cli, "Stopping", partial(Stopping, end=steps.append))
    monkeypatch.setattr(connect, "connect", lambda environment: steps.append("joined"))
    done = CliRunner().invoke(app, ["serve", "--policy", "configs/tiny"])
    assert done.exit_code == 143, done.output
    assert steps == ["joined", "cleaned up"]
    assert "stopped by SIGTERM" in done.output
    gc.collect()
    assert caplog.text == "", "asyncio tells of what nobody has read when it is collected"
