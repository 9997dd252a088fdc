"""The event log of a run."""

from __future__ import annotations

import json
import time
from pathlib import Path

from cluster.records.events import FILE, Event, EventLog, read_events, read_log

JOIN = Event(kind="join", who="rollout worker 1", detail="serves version 3", step=3)
LEAVE = Event(kind="leave", who="rollout worker 0", detail="killed: no progress for 60 s")


def test_events_are_recorded_shown_and_counted(tmp_path: Path) -> None:
    said: list[str] = []
    warned: list[str] = []
    log = EventLog(tmp_path, say=said.append, warn=warned.append)
    log.add(JOIN)
    log.add(LEAVE)
    assert read_events(tmp_path) == [JOIN, LEAVE]
    assert said == ["rollout worker 1: join: serves version 3"]
    assert warned == ["rollout worker 0: leave: killed: no progress for 60 s"]
    assert log.figures() == {"events/join": 1.0, "events/leave": 1.0}
    written = json.loads((tmp_path / FILE).read_text().splitlines()[0])
    assert abs(written["time"] - time.time()) < 60


def test_a_torn_line_costs_itself(tmp_path: Path) -> None:
    log = EventLog(tmp_path, say=lambda _: None, warn=lambda _: None)
    log.add(JOIN)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"time": 1.0, "ki')
    assert read_events(tmp_path) == [JOIN]
    log.add(LEAVE)
    assert read_events(tmp_path) == [JOIN, LEAVE], "the next driver's first event is not glued to it"


def test_a_file_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    warned: list[str] = []
    EventLog(tmp_path / "gone", say=lambda _: None, warn=warned.append).add(JOIN)
    assert "cannot be written" in warned[0]


def test_a_run_without_events_has_none(tmp_path: Path) -> None:
    assert read_events(tmp_path) == []


def test_the_log_has_times_and_ends_with_the_last_events(tmp_path: Path) -> None:
    log = EventLog(tmp_path, say=lambda _: None, warn=lambda _: None)
    for step in range(5):
        log.add(Event(kind="reform", who="learner", step=step, seconds=1.5))
    found = read_log(tmp_path, last=2)
    assert [logged.event.step for logged in found] == [3, 4]
    assert all(abs(logged.time - time.time()) < 60 for logged in found)
    assert (log.num("reform"), log.num("join")) == (5, 0)
    assert (log.seconds("reform", "replay"), log.seconds("join")) == (7.5, 0.0)


def test_a_line_of_a_later_version_is_read_without_what_is_unknown(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"time": 1.0, "kind": "join", "who": "a", "mood": "good"}\n[]\n{"time": 2.0}\n')
    assert read_events(tmp_path) == [Event(kind="join", who="a")]


def test_lines_whose_fields_are_of_other_kinds_cost_themselves(tmp_path: Path) -> None:
    sound = {"time": 1.0, "kind": "join", "who": "a"}
    changes: list[dict[str, object]] = [
        {"time": float("nan")}, {"time": float("inf")}, {"time": 1e20}, {"time": 10**400}, {"time": None},
        {"who": None}, {"kind": ["x"]}, {"detail": 5}, {"step": "x"}, {"step": float("nan")}, {"step": {}},
        {"seconds": "x"},
    ]  # fmt: skip
    lines = [json.dumps(sound | change) for change in changes] + ["[" * 200_000, json.dumps(sound | {"step": 2})]
    (tmp_path / FILE).write_text("\n".join(lines))
    assert read_events(tmp_path) == [Event(kind="join", who="a", step=2)]
    assert len(read_log(tmp_path, last=3)) == 1
