"""The task beside a run that writes its status and answers requests for other sizes."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from actors.errors import LearnerError
from cluster.records.events import Event
from cluster.status import writer as writing
from cluster.status.files import STATUS, read_snapshot
from cluster.status.scaling import ScaleRequest, SizeDesk, write_request
from cluster.status.views import RunStatus
from cluster.status.writer import StatusWriter, end_of
from configs.load import load_config
from tests.cluster.status.test_views import rollouts

REFUSAL = (
    "learner=2: must stay 1 with learner.copy_state=false, "
    "with which ranks join at the start only: resume the run with learner.copy_state=true"
)


class Run:
    """A run's folder, what it is like now, and all that its writer said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.step = 0
        self.members = tuple(rollouts("serving"))
        self.desk = SizeDesk(folder, load_config("tiny", ["learner.copy_state=false"]))
        self.events: list[Event] = []
        self.seen: list[RunStatus] = []
        self.warned: list[str] = []
        self.writer = StatusWriter(
            folder,
            assemble=self.assemble,
            desk=self.desk,
            on_event=self.events.append,
            on_status=self.seen.append,
            warn=self.warned.append,
        )

    def assemble(self, state, cause) -> RunStatus:
        return RunStatus(
            run="tiny",
            state=state,
            cause=cause,
            step=self.step,
            num_steps=9,
            members=self.members,
            wanted={role: str(size) for role, size in self.desk.sizes.items()},
            scale=self.desk.answer,
        )

    @property
    def written(self) -> RunStatus:
        return read_snapshot(self.folder).status

    @property
    def beat(self) -> int:
        return read_snapshot(self.folder).beat


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def ask(folder, number, **sizes):
    write_request(folder, ScaleRequest(id=f"r{number}", time=time.time(), sizes=sizes))


async def test_the_file_changes_when_the_run_does_and_beats_when_it_does_not(run, monkeypatch):
    await run.writer.tick()
    await run.writer.tick()
    assert run.beat == 1, "nothing has happened"
    run.step = 1
    await run.writer.tick()
    assert (run.beat, run.written.step) == (2, 1)
    assert [status.step for status in run.seen] == [0, 1]
    monkeypatch.setattr(writing, "HEARTBEAT_S", 0.0)
    await run.writer.tick()
    assert run.beat == 3
    assert len(run.seen) == 2, "a beat is no news"


async def test_a_request_is_answered_once_in_the_file_and_as_an_event(run):
    ask(run.folder, 1, rollouts="2..6")
    await run.writer.tick()
    await run.writer.tick()
    assert run.written.scale is not None
    assert (run.written.scale.id, run.written.scale.is_accepted) == ("r1", True)
    assert run.written.wanted == {"rollouts": "2..6", "learner": "1"}
    ask(run.folder, 2, learner="2")
    await run.writer.tick()
    assert run.written.scale is not None
    assert (run.written.scale.id, run.written.scale.reason) == ("r2", REFUSAL)
    assert [event.line() for event in run.events] == [
        "run: scale: rollouts=2..6 accepted",
        f"run: scale: learner=2 refused: {REFUSAL}",
    ]


async def test_a_resumed_run_does_not_answer_again(run):
    ask(run.folder, 1, rollouts="2..6")
    await run.writer.tick()
    resumed = Run(run.folder)
    await resumed.writer.tick()
    assert resumed.events == []
    assert resumed.written.scale == run.written.scale
    assert resumed.written.wanted["rollouts"] == "2..6"


@pytest.mark.parametrize(
    ("error", "state", "cause"),
    [
        (None, "ended", ""),
        (LearnerError("rank 1 died;\nlog: x"), "failed", "rank 1 died; log: x"),
        (KeyboardInterrupt(), "stopped", "interrupted"),
        (ExceptionGroup("several", [LearnerError("first"), LearnerError("second")]), "failed", "first"),
        (SystemExit(75), "stopped", "exit code 75"),
        (AssertionError(), "failed", "AssertionError"),
    ],
)
async def test_the_last_word_says_how_the_run_ended(run, error, state, cause):
    assert end_of(error) == (state, cause)
    if error is None:
        async with run.writer:
            pass
    else:
        with pytest.raises(type(error)):
            async with run.writer:
                raise error
    assert (run.written.state, run.written.cause) == (state, cause)


async def test_a_cancelled_run_was_stopped(run):
    async def body():
        async with run.writer:
            await asyncio.sleep(60)

    task = asyncio.create_task(body())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert run.written.state == "stopped"


async def test_a_disk_that_takes_nothing_is_one_warning_and_no_end(run, monkeypatch):
    def full(folder, snapshot):
        raise OSError(28, "No space left on device")

    await run.writer.tick()
    with monkeypatch.context() as patch:
        patch.setattr(writing, "write_snapshot", full)
        for run.step in (1, 2, 3):
            await run.writer.tick()
    assert len(run.warned) == 1
    assert "No space left" in run.warned[0]
    run.step = 4
    await run.writer.tick()
    assert run.written.step == 4


async def test_sizes_that_cannot_be_kept_are_not_accepted(run, monkeypatch):
    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cluster.status.scaling.write_atomically", full)
    ask(run.folder, 1, rollouts="2..6")
    await run.writer.tick()
    assert run.written.wanted["rollouts"] == "1"
    assert run.written.scale is not None
    assert not run.written.scale.is_accepted
    assert "No space left" in run.written.scale.reason


async def test_a_bug_in_the_status_comes_out_and_does_not_hide_that_of_the_run(run, monkeypatch):
    monkeypatch.setattr(writing, "TICK_S", 0.0)

    async def broken():
        raise ZeroDivisionError

    async with run.writer:
        monkeypatch.setattr(run.writer, "tick", broken)
        await asyncio.sleep(0.05)
        with pytest.raises(ZeroDivisionError):
            run.writer.check()
        with pytest.raises(LearnerError):
            async with Run(run.folder).writer:
                raise LearnerError("first")
        run.writer._task = asyncio.create_task(asyncio.sleep(0))


async def test_the_loop_is_not_held_while_the_disk_is_slow(run, monkeypatch):
    def slow(folder, snapshot):
        time.sleep(0.3)

    monkeypatch.setattr(writing, "write_snapshot", slow)
    started = time.monotonic()
    tick = asyncio.create_task(run.writer.tick())
    await asyncio.sleep(0.01)
    assert time.monotonic() - started < 0.2
    await tick


async def test_the_file_is_whole_at_every_moment(run, monkeypatch):
    """A reader that never pauses sees no half-written file."""
    monkeypatch.setattr(writing, "HEARTBEAT_S", 0.0)
    await run.writer.tick()
    done = asyncio.Event()

    def read() -> int:
        num = 0
        while not done.is_set():
            json.loads((run.folder / STATUS).read_text())
            num += 1
        return num

    reading = asyncio.create_task(asyncio.to_thread(read))
    for step in range(100):
        run.step = step
        run.members = tuple(replace(member, detail="x" * 50 * step) for member in run.members)
        await run.writer.tick()
    done.set()
    assert await reading > 0
