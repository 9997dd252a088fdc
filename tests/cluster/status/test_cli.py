"""`visionthink status` and `visionthink scale`, as a person or a script calls them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from actors.errors import RunError
from cluster.cli import app
from cluster.records.events import Event, EventLog
from cluster.status.cli import ask
from cluster.status.files import Snapshot, write_snapshot
from cluster.status.scaling import REQUEST, ScaleRequest, SizeDesk, read_request, write_request
from cluster.status.table import short_time
from configs.load import load_config
from tests.cluster.status.claims import dead_pid, write_claim
from tests.cluster.status.test_views import STATUS as RUNNING

ROOT = Path(__file__).resolve().parents[3]


def write(folder, status=RUNNING, **changes):
    here = Snapshot(status=status, written_at=time.time(), beat=1, host=socket.gethostname(), pid=os.getpid())
    write_snapshot(folder, replace(here, **changes))


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_living_run_shows_members_and_what_is_pending_and_why(tmp_path):
    write(tmp_path)
    log = EventLog(tmp_path, say=lambda _: None, warn=lambda _: None)
    log.add(Event(kind="join", who="rollout worker 0", detail="serves version 3"))
    write_claim(tmp_path, host="n1", since="12:00")
    shown = call("status", tmp_path).stdout
    for words in (
        "run tiny: running, step 3/20, version 3, ETA 0:01:02",
        "step 4: rollouts and judging 3/32",
        "sizes: rollouts 2..4, learner 1; judges up: 2",
        "rollout worker 1",
        "no node has 1 GPU",
        "rollouts: 1 of at least 2 are there",
        "rollout worker 0: join: serves version 3",
        "held by the driver on n1",
    ):
        assert words in shown, shown


def test_nothing_that_a_run_says_commands_the_terminal(tmp_path):
    act = "\x1b[2J"
    member = replace(RUNNING.members[0], name=f"worker {act}", node=act, detail=act)
    write(tmp_path, replace(RUNNING, run=f"tiny {act}", phase=act, members=(member,)), host=f"n {act}")
    log = EventLog(tmp_path, say=lambda _: None, warn=lambda _: None)
    log.add(Event(kind="skip", who=f"sample {act}", detail=act))
    write_claim(tmp_path, host=f"h {act}")
    shown = call("status", tmp_path).stdout
    assert "\x1b" not in shown
    assert shown.count("␛[2J") >= 7, shown


def test_json_is_one_object_with_all_of_it(tmp_path):
    write(tmp_path)
    done = call("status", tmp_path, "--json")
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["is_running"]
    assert (found["state"], found["step"], found["version"], found["waiting"]) == (
        "running",
        3,
        3,
        ["rollout worker 1"],
    )
    assert found["members"][0]["node"] == "n1"
    assert found["age_s"] < 60
    assert found["events"] == []


@pytest.mark.parametrize(
    ("state", "cause", "words"),
    [
        ("failed", "learner rank 0: out of memory", "run tiny: failed"),
        ("ended", "", "run tiny: ended"),
        ("stopped", "SIGTERM", "run tiny: stopped"),
    ],
)
def test_a_run_that_is_over_says_so_with_its_cause(tmp_path, state, cause, words):
    write(tmp_path, replace(RUNNING, state=state, cause=cause, members=()))
    shown = call("status", tmp_path).stdout
    assert words in shown
    assert cause in shown
    assert "ETA" not in shown
    found = json.loads(call("status", tmp_path, "--json").stdout)
    assert (found["is_running"], found["state"], found["cause"]) == (False, state, cause)


def test_a_killed_driver_is_gone_whatever_its_file_says(tmp_path):
    write(tmp_path)
    write_claim(tmp_path, pid=dead_pid())
    EventLog(tmp_path, say=lambda _: None, warn=lambda _: None).add(
        Event(kind="preempted", who="driver", detail="soon")
    )
    shown = call("status", tmp_path).stdout
    assert "run tiny: gone, step 3/20" in shown
    assert "it was killed, or its machine was lost; driver: preempted: soon" in " ".join(shown.split())
    assert json.loads(call("status", tmp_path, "--json").stdout)["waiting"] == [], "nobody waits for it"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-5, "0 s"), (45, "45 s"), (119, "119 s"), (720, "12 min"), (10_800, "3 h"), (200_000, "2 d")],
)
def test_times_are_short(seconds, shown):
    assert short_time(seconds) == shown


def test_a_folder_without_a_run_is_one_line(tmp_path):
    done = call("status", tmp_path)
    assert done.exit_code == 1
    assert done.stderr.splitlines() == [f"error: {tmp_path} has no status.json: no run has started there"]


def test_watching_ends_with_the_run(tmp_path):
    write(tmp_path)

    def end():
        time.sleep(0.5)
        write(tmp_path, replace(RUNNING, state="ended", step=20), beat=2)

    ending = threading.Thread(target=end)
    ending.start()
    lines = call("status", tmp_path, "--watch", "--json").stdout.splitlines()
    ending.join()
    assert [json.loads(line)["state"] for line in lines] == ["running", "ended"]


class Driver:
    """Answers requests as a run's driver does; `sleep` is its clock."""

    def __init__(self, folder, *settings):
        self.folder = folder
        self.desk = SizeDesk(folder, load_config("tiny", list(settings)))
        self.now = 0.0
        write(folder)

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        if self.now > 1.0 and (request := read_request(self.folder)):
            self.desk.consider(request)
            write(self.folder, replace(RUNNING, scale=self.desk.answer))


def test_scale_waits_for_the_answer_to_its_own_request(tmp_path):
    driver = Driver(tmp_path)
    earlier = ask(tmp_path, {"rollouts": "3"}, timeout_s=10, clock=driver.clock, sleep=driver.sleep)
    answer = ask(tmp_path, {"rollouts": "2..6"}, timeout_s=10, clock=driver.clock, sleep=driver.sleep)
    assert answer.id != earlier.id
    assert (answer.is_accepted, answer.requested) == (True, {"rollouts": "2..6"})
    assert driver.desk.desired("rollouts").maximum == 6


def test_a_request_without_an_answer_is_taken_back(tmp_path):
    driver = Driver(tmp_path)
    with pytest.raises(RunError, match=r"did not answer within 0\.5 s"):
        ask(tmp_path, {"rollouts": "3"}, timeout_s=0.5, clock=driver.clock, sleep=driver.sleep)
    assert not (tmp_path / REQUEST).exists()


def test_a_request_that_another_one_replaced_is_told(tmp_path):
    driver = Driver(tmp_path)

    def replaced(seconds):
        write_request(tmp_path, ScaleRequest(id="theirs", time=0.0, sizes={"rollouts": "9"}))
        driver.sleep(seconds)

    with pytest.raises(RunError, match="another request"):
        ask(tmp_path, {"rollouts": "3"}, timeout_s=10, clock=driver.clock, sleep=replaced)
    found = read_request(tmp_path)
    assert found is not None
    assert found.id == "theirs"


def test_a_run_that_ends_before_it_answers_is_told_with_its_cause(tmp_path):
    write(tmp_path)

    def ends(seconds):
        write(tmp_path, replace(RUNNING, state="failed", cause="disk full"))

    with pytest.raises(RunError, match="ended before it answered: disk full"):
        ask(tmp_path, {"rollouts": "3"}, timeout_s=10, clock=lambda: 0.0, sleep=ends)
    assert not (tmp_path / REQUEST).exists()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (replace(RUNNING, state="ended"), "it ended"),
        (replace(RUNNING, state="failed", cause="no worker left"), "it failed: no worker left"),
        (RUNNING, "its driver stopped without reporting"),
    ],
)
def test_what_does_not_run_is_not_scaled(tmp_path, status, words):
    write(tmp_path, status)
    write_claim(tmp_path, pid=dead_pid())
    done = call("scale", tmp_path, "rollouts=2")
    assert done.exit_code == 1
    assert words in done.stderr
    assert not (tmp_path / REQUEST).exists()


def test_a_size_that_is_none_is_refused_before_the_run_is_asked(tmp_path):
    write(tmp_path)
    done = call("scale", tmp_path, "workers=2")
    assert done.exit_code == 1
    assert "workers is not a role" in done.stderr
    assert not (tmp_path / REQUEST).exists()


@pytest.mark.parametrize(
    ("role", "exit_code", "words"), [("rollouts", 0, "rollouts=2..6 accepted"), ("learner", 1, "must stay 1")]
)
def test_the_answer_is_printed_and_is_the_exit_code(tmp_path, role, exit_code, words):
    driver = Driver(tmp_path, "learner.copy_state=false")
    driver.now = 2.0
    done = threading.Event()

    def drive():
        while not done.is_set():
            driver.sleep(0.1)
            time.sleep(0.05)

    driving = threading.Thread(target=drive)
    driving.start()
    try:
        answered = call("scale", tmp_path, f"{role}=2..6", "--timeout", 20)
        as_json = call("scale", tmp_path, f"{role}=2..6", "--timeout", 20, "--json")
    finally:
        done.set()
        driving.join()
    assert answered.exit_code == as_json.exit_code == exit_code
    assert words in (answered.stdout or answered.stderr)
    assert json.loads(as_json.stdout.splitlines()[-1])["is_accepted"] == (exit_code == 0)


def test_the_command_needs_nothing_heavy():
    program = (
        "import sys; from cluster.cli import main; sys.argv = ['visionthink', 'status', '/nowhere']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([name for name in ('ray', 'torch', 'vllm', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr
