"""What a run tells the world: events shown once per step, members above the table, metrics published."""

from __future__ import annotations

import asyncio
import io
import time

import pytest
from rich.console import Console

from actors.errors import RunError
from cluster.display import Display
from cluster.records.events import Event, read_events
from cluster.status.cli import ask
from cluster.status.files import read_snapshot
from cluster.status.observer import Observer
from cluster.status.readings import Reading
from cluster.status.repeats import Repeats
from cluster.status.scaling import SizeDesk
from cluster.status.writer import TICK_S
from configs.load import load_config
from configs.ranges import Range
from tests.cluster.status.test_readings import flat
from tests.cluster.status.test_views import ranks, rollouts


class Seen:
    """An observed run with a display of 80 columns."""

    def __init__(self, folder):
        config = load_config("tiny", ["rollout.num_workers=2"])
        self.out = io.StringIO()
        self.display = Display(
            config, Console(file=self.out, width=80, height=24, force_terminal=True, color_system=None)
        )
        self.readings: list[Reading] = []
        self.observer = Observer(
            folder, config, desk=SizeDesk(folder, config), screen=self.display, publish=self.readings.extend
        )

    def screen(self) -> list[str]:
        self.out.truncate(0)
        self.out.seek(0)
        self.display.console.print(self.display)
        return self.out.getvalue().splitlines()


@pytest.fixture
def seen(tmp_path):
    return Seen(tmp_path)


async def test_members_steps_and_versions_reach_file_display_and_metrics(seen, tmp_path):
    members = [*rollouts("serving", "pending"), *ranks("serving", "serving")]
    async with seen.observer as observer:
        assert read_snapshot(tmp_path).status.state == "starting"
        observer.watch(lambda: members, num_judges=lambda: 3)
        observer.started(4)
        seen.display.started(4)
        observer.step_done(5, {"policy/version": 5.0, "time/step_s": 2.0})
        seen.display.step_done(5, {"time/step_s": 2.0})
        await observer._writer.tick()
        status = read_snapshot(tmp_path).status
        assert (status.state, status.step, status.version, status.num_judges) == ("running", 5, 5, 3)
        assert [member.name for member in status.members] == [member.name for member in members]
        assert status.phase == "step 6: rollouts and judging 0/32"
        assert status.eta_s == 2.0 * (status.num_steps - 5)
        assert seen.screen()[0].rstrip() == "rollouts 1/2 serving, 1 pending; learner 2/1 ranks; judges 3"
    status = read_snapshot(tmp_path).status
    assert (status.state, status.members, status.eta_s) == ("ended", (), None)
    found = flat(seen.readings)
    assert found["members", "rollouts", "pending"] == 1
    assert found["policy_version",] == 5


async def test_an_event_belongs_to_the_step_in_progress_and_is_counted(seen, tmp_path):
    async with seen.observer as observer:
        observer.started(4)
        observer.add_event(Event(kind="leave", who="rollout worker 0", detail="killed"))
        observer.add_event(Event(kind="join", who="rollout worker 0", step=9))
    assert [(event.kind, event.step) for event in read_events(tmp_path)] == [("leave", 5), ("join", 9)]
    assert flat(seen.readings)["events", "leave"] == 1
    assert "warning: rollout worker 0: leave: killed" in seen.out.getvalue()


async def test_a_line_that_repeats_within_a_step_is_counted(seen):
    flaky = Event(kind="restart", who="rollout worker 1", detail="its node left")
    async with seen.observer as observer:
        for _ in range(5):
            observer.add_event(flaky)
        observer.step_done(1, {})
        observer.add_event(flaky)
    lines = [line for line in seen.out.getvalue().splitlines() if "restart" in line]
    assert lines == [
        "rollout worker 1: restart: its node left",
        "rollout worker 1: restart: its node left (5 times)",
        "rollout worker 1: restart: its node left",
    ]


def test_repeats_go_where_they_were_shown():
    said: list[str] = []
    warned: list[str] = []
    repeats = Repeats(say=said.append, warn=warned.append)
    for _ in range(2):
        repeats.warn("x")
    repeats.say("x")
    repeats.flush()
    repeats.flush()
    assert (said, warned) == (["x"], ["x", "x (2 times)"])


@pytest.mark.parametrize("width", [20, 40, 80])
def test_the_members_take_one_line_of_a_narrow_terminal(width):
    out = io.StringIO()
    display = Display(
        load_config("tiny", []), Console(file=out, width=width, height=24, force_terminal=True, color_system=None)
    )
    display.show_members("rollouts 3/4 serving, 1 pending, 2 draining; learner 2 ranks; judges 3 and more of them")
    display.console.print(display)
    assert [line[:8] for line in out.getvalue().splitlines()].count("rollouts") == 1
    assert max(map(len, out.getvalue().splitlines())) <= width


async def test_a_live_run_takes_another_size_within_seconds(seen, tmp_path):
    async with seen.observer as observer:
        observer.started(0)
        started = time.monotonic()
        answer = await asyncio.to_thread(ask, tmp_path, {"rollouts": "2..6"}, timeout_s=20)
        assert time.monotonic() - started < 5 * TICK_S
        assert answer.is_accepted
        assert observer.desired("rollouts") == Range(minimum=2, maximum=6)
    assert [event.detail for event in read_events(tmp_path)] == ["rollouts=2..6 accepted"]
    with pytest.raises(RunError, match="it ended"):
        ask(tmp_path, {"rollouts": "3"}, timeout_s=20)
