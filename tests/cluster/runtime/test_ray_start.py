"""Ray's start leaves this process its signals, and gets a second try where its raylet does not come up."""

import os
import signal
import subprocess
import sys
import time

import pytest
import ray

from actors.errors import RunError
from cluster.runtime.ray_start import SLOW_START, signals_kept, start_ray


def take_over(number, frame):
    """What Ray does with SIGTERM in a driver."""
    sys.exit(number)


def test_signals_are_those_of_the_command_again_once_ray_has_started():
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))

    def stopped_in_ray() -> None:
        with signals_kept():
            signal.signal(signal.SIGTERM, take_over)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    try:
        with signals_kept():
            signal.signal(signal.SIGTERM, take_over)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(RunError, match="stopped while Ray was starting"):
            stopped_in_ray()
        assert seen == [signal.SIGTERM, signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


class ScriptedRay:
    """A `ray.init` that starts a process, and then fails with these errors in turn until none is left."""

    def __init__(self):
        self.errors: list[Exception] = []
        self.processes: list[subprocess.Popen] = []

    def start_process(self):
        self.processes.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))

    def init(self, **settings):
        self.start_process()
        if self.errors:
            raise self.errors.pop(0)
        return settings

    def alive(self):
        return [process.poll() is None for process in self.processes]


@pytest.fixture
def scripted(monkeypatch):
    found = ScriptedRay()
    monkeypatch.setattr(ray, "init", found.init)
    yield found
    for process in found.processes:
        process.kill()
        process.wait()


def test_ray_is_started_again_where_its_node_did_not_come_up(scripted):
    scripted.start_process()  # not of this start
    scripted.errors = [Exception(f"The current node {SLOW_START}. This could happen because")]
    assert start_ray(num_cpus=2) == {"num_cpus": 2}
    assert scripted.alive() == [True, False, True]


def test_a_second_failure_is_told(scripted):
    scripted.errors = [Exception(f"The current node {SLOW_START}.")] * 2
    with pytest.raises(Exception, match=SLOW_START):
        start_ray()
    assert scripted.alive() == [False, True]


@pytest.mark.parametrize("error", [ConnectionError("gone"), RuntimeError(SLOW_START), Exception("another")])
def test_other_failures_are_told_at_once(scripted, error):
    scripted.errors = [error]
    with pytest.raises(type(error), match=str(error)):
        start_ray()
    assert scripted.alive() == [True]
