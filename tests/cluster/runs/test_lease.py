"""The lease on a real folder: one driver, its successor, and what each of them is told."""

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from actors.errors import RunError
from cluster.runs import claims
from cluster.runs import lease as leases
from cluster.runs.claims import Claim
from cluster.runs.lease import FOLDER, lease, look, make_claim, take_lease

ROOT = Path(__file__).resolve().parents[3]
HOLD = """
import sys, time
from pathlib import Path
from cluster.runs.lease import take_lease
take_lease(Path(sys.argv[1]), say=print)
print("held", flush=True)
time.sleep(60)
"""
ELSEWHERE = Claim(driver="b", host="node-2", pid=12, machine="another", started=5, since="noon")


@pytest.fixture
def said():
    return []


@pytest.fixture
def hurried(monkeypatch):
    """A takeover after a fraction of a second."""
    monkeypatch.setattr(claims, "TAKEOVER_S", 0.4)
    monkeypatch.setattr(leases, "LOOK_S", 0.05)


def test_a_second_driver_is_refused_at_once_and_told_who_drives(tmp_path, said):
    started = time.monotonic()
    with lease(tmp_path, say=said.append) as held:
        with pytest.raises(RunError, match=rf"in use by the driver on .* \(pid {os.getpid()}, since .*run\.name"):
            take_lease(tmp_path, say=said.append)
        held.check()
    assert time.monotonic() - started < 2
    with lease(tmp_path, say=said.append) as successor:
        assert successor.token == held.token + 1
    assert said == [], "a run that was given back is nobody's"


def test_a_driver_that_was_killed_is_replaced_at_once_on_its_machine(tmp_path, said):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=rf"pid {process.pid},"):
        take_lease(tmp_path, say=said.append)
    process.kill()
    process.communicate()
    started = time.monotonic()
    with lease(tmp_path, say=said.append) as successor:
        assert (successor.token, time.monotonic() - started < 2) == (2, True)
    assert [f"(pid {process.pid}, " in line and "no sign of life" in line for line in said] == [True]


def test_a_silent_driver_of_another_machine_is_replaced_after_a_while(tmp_path, said, hurried):
    folder = tmp_path / FOLDER
    folder.mkdir()
    assert make_claim(folder, 5, ELSEWHERE)
    with lease(tmp_path, say=said.append) as successor:
        assert successor.token == 6
    assert "waiting up to" in said[0]
    assert "node-2 (pid 12, since noon)" in said[0]
    assert "replaces" in said[1]


def test_a_living_driver_of_another_machine_is_named(tmp_path, said, hurried):
    folder = tmp_path / FOLDER
    folder.mkdir()
    make_claim(folder, 5, ELSEWHERE)

    def renew():
        time.sleep(0.1)
        (folder / "00000005.json").write_bytes(replace(ELSEWHERE, beat=1).to_bytes())

    threading.Thread(target=renew).start()
    with pytest.raises(RunError, match=r"in use by the driver on node-2 \(pid 12, since noon\)"):
        take_lease(tmp_path, say=said.append)


def test_a_driver_that_was_replaced_is_stopped_at_its_next_look(tmp_path, said):
    events = []
    with lease(tmp_path, say=said.append) as held:
        held.report_to(events.append)
        make_claim(tmp_path / FOLDER, held.token + 1, ELSEWHERE)
        with pytest.raises(RunError, match="is driven by the driver on node-2") as stopped:
            held.check()
        assert "\n" not in str(stopped.value)
        with pytest.raises(RunError, match="node-2"):
            held.check()
    assert [event.kind for event in events] == ["fenced"]
    assert look(tmp_path / FOLDER).claim == ELSEWHERE, "its release leaves the other's claim as it is"


def test_a_claim_that_comes_late_by_two_drivers_does_not_count(tmp_path):
    folder = tmp_path / FOLDER
    folder.mkdir()
    make_claim(folder, 7, ELSEWHERE)
    assert not make_claim(folder, 6, replace(ELSEWHERE, driver="late")), "decided before 6 and 7 came"
    assert not make_claim(folder, 7, replace(ELSEWHERE, driver="late"))
    assert [path.name for path in folder.iterdir()] == ["00000007.json"]


def test_of_many_drivers_at_once_one_gets_the_run(tmp_path, said):
    barrier, taken, refused = threading.Barrier(8), [], []

    def drive():
        barrier.wait()
        try:
            taken.append(take_lease(tmp_path, say=said.append))
        except RunError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=drive) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(taken), len(refused)) == (1, 7)
    taken[0].check()
    taken[0].release()


def test_without_hard_links_an_exclusive_file_does(tmp_path, said, monkeypatch):
    def no_links(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with lease(tmp_path, say=said.append) as held:
        held.check()
        assert look(tmp_path / FOLDER).claim.pid == os.getpid()


def test_a_driver_gives_signs_of_life(tmp_path, said, monkeypatch):
    monkeypatch.setattr(leases, "RENEW_S", 0.02)
    with lease(tmp_path, say=said.append):
        deadline = time.monotonic() + 10
        while look(tmp_path / FOLDER).claim.beat < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_folder_that_cannot_be_written_is_one_line(said):
    with pytest.raises(RunError, match=r"/proc/run/lease cannot be written.*run\.dir"):
        take_lease(Path("/proc/run"), say=said.append)


def test_a_claim_that_is_listed_but_gone_is_one_line_and_not_a_hang(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "LOOK_S", 0.001)
    monkeypatch.setattr(os, "listdir", lambda _: ["00000003.json", ".x.tmp", "notes.json"])
    with pytest.raises(RunError, match="cannot be read"):
        look(tmp_path)
