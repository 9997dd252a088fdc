"""The status file, seen from other processes and machines."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace

import pytest

from cluster.runs.lease import FOLDER
from cluster.status.files import (
    STALE_S,
    STATUS,
    Snapshot,
    is_alive,
    lease_owner,
    read_snapshot,
    write_snapshot,
)
from cluster.status.views import encode_status
from tests.cluster.status.claims import dead_pid, write_claim
from tests.cluster.status.test_views import STATUS as RUNNING

NOW = 1_000_000.0
HERE = Snapshot(status=RUNNING, written_at=NOW, beat=7, host=socket.gethostname(), pid=os.getpid())
ELSEWHERE = replace(HERE, host="another-machine")


def test_what_is_written_is_read(tmp_path):
    write_snapshot(tmp_path, HERE)
    assert read_snapshot(tmp_path) == HERE
    assert [path.name for path in tmp_path.iterdir()] == [STATUS], "no temporary file stays"


WRITTEN = json.dumps({"status": encode_status(RUNNING), "written_at": 1.0, "beat": 1, "host": "a", "pid": 1})


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", '{"status": {}}', '{"status": 3, "written_at": 1}', "[" * 200_000,
        WRITTEN.replace('"beat": 1', '"beat": 1e400'), WRITTEN.replace('"written_at": 1.0', f'"written_at": {10**400}'),
    ],
)  # fmt: skip
def test_a_file_that_is_no_status_is_an_error_of_one_line(tmp_path, text):
    (tmp_path / STATUS).write_text(text)
    with pytest.raises(ValueError, match=r"status\.json cannot be read"):
        read_snapshot(tmp_path)


def test_a_folder_without_a_run_is_told_from_none(tmp_path):
    with pytest.raises(ValueError, match="no run has started there"):
        read_snapshot(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        read_snapshot(tmp_path / "gone")


def alive(folder, snapshot, *, age=0.0, beats=()):
    """Whether it is alive at this age, with later snapshots appearing one a second; and the seconds waited."""
    write_snapshot(folder, snapshot)
    waited = []
    pending = list(beats)

    def sleep(seconds):
        waited.append(seconds)
        if pending:
            write_snapshot(folder, pending.pop(0))

    return is_alive(folder, snapshot, now=lambda: NOW + age, sleep=sleep), sum(waited)


def test_a_fresh_file_is_a_living_run(tmp_path):
    assert alive(tmp_path, HERE, age=STALE_S - 1) == (True, 0)
    assert alive(tmp_path, ELSEWHERE, age=STALE_S - 1) == (True, 0)


def test_a_run_that_is_over_is_not_alive_however_fresh(tmp_path):
    for state in ("ended", "failed", "stopped"):
        assert alive(tmp_path, replace(HERE, status=replace(RUNNING, state=state))) == (False, 0)


def test_a_dead_process_of_this_machine_is_known_at_once(tmp_path):
    write_claim(tmp_path, pid=dead_pid())
    assert alive(tmp_path, HERE) == (False, 0)


def test_a_process_of_another_container_with_this_host_name_says_nothing(tmp_path):
    write_claim(tmp_path, pid=dead_pid(), machine="the same name, other process numbers")
    assert alive(tmp_path, HERE) == (True, 0)


def test_a_silent_driver_of_another_machine_is_waited_for_and_then_gone(tmp_path):
    is_up, waited = alive(tmp_path, ELSEWHERE, age=3600.0)
    assert not is_up
    assert waited == 10


@pytest.mark.parametrize("skew", [3600.0, -3600.0])
def test_clocks_that_differ_do_not_bury_a_living_run(tmp_path, skew):
    beats = [ELSEWHERE, ELSEWHERE, replace(ELSEWHERE, beat=8)]
    assert alive(tmp_path, ELSEWHERE, age=skew, beats=beats) == (True, 3)


def test_a_run_that_ends_while_it_is_waited_for_is_over(tmp_path):
    ended = replace(ELSEWHERE, beat=8, status=replace(RUNNING, state="ended"))
    assert alive(tmp_path, ELSEWHERE, age=3600.0, beats=[ended]) == (False, 1)


def test_the_owner_is_the_newest_claim_that_was_not_given_back(tmp_path):
    assert lease_owner(tmp_path) == ""
    write_claim(tmp_path, 9, host="n9")
    write_claim(tmp_path, 10, host="n1", pid=7, since="12:00")
    assert lease_owner(tmp_path) == "the driver on n1 (pid 7, since 12:00)"
    write_claim(tmp_path, 10, host="n1", is_released=True)
    assert lease_owner(tmp_path) == ""
    (tmp_path / FOLDER / "00000011.json").write_text("{")
    assert lease_owner(tmp_path) == ""
