"""A command that is told to stop saves what it has, within its grace time, and says how to go on."""

import asyncio
import contextlib
import os
import signal
import threading
import time

import pytest
import typer

from actors.errors import CheckpointError, LearnerError, RunError
from cluster.runtime.notices import NOTICE, stop_when_preempted
from cluster.shell import report_errors, run_async
from cluster.stopping import CONTINUE, ECHO_S, RESUMABLE, Reason, RunStopped, Stopping

TERM = Reason(name="SIGTERM", signum=signal.SIGTERM)
HUP = Reason(name="SIGHUP", signum=signal.SIGHUP)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def ended():
    """Exit codes with which the process would have ended on the spot."""
    return []


@pytest.fixture
def stopping(ended):
    return Stopping(grace_s=30.0, is_run=True, end=ended.append)


async def saves(step):
    await asyncio.sleep(0)
    return step


async def train(stopping, save, *, finished=0, on_cancel=None):
    async with stopping.saving(save, finished=lambda: finished):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if on_cancel is not None:
                raise on_cancel from None
            raise


async def stopped(stopping, main, reason=TERM):
    asyncio.get_running_loop().call_later(0.01, stopping.request, reason)
    with pytest.raises(RunStopped) as told:
        await asyncio.wait_for(stopping.run(main), 5)
    return told.value


@pytest.mark.parametrize(("step", "words"), [(12, ": step 12 is saved"), (None, " before a step was finished")])
async def test_a_run_that_is_told_to_stop_saves_its_last_step_first(stopping, step, words):
    outcome = await stopped(stopping, train(stopping, lambda: saves(step)))
    assert outcome.code == RESUMABLE == 75
    assert str(outcome) == f"stopped by SIGTERM{words}; {CONTINUE}"


async def test_a_part_that_fails_while_the_run_is_stopped_does_not_keep_it_from_saving(stopping):
    outcome = await stopped(stopping, train(stopping, lambda: saves(3), on_cancel=LearnerError("rank 0 died")))
    assert "step 3 is saved" in str(outcome)


async def test_a_failure_of_a_run_that_nobody_stopped_is_no_stop(stopping):
    async def fails():
        async with stopping.saving(lambda: pytest.fail("there is nothing to save"), finished=lambda: 1):
            raise LearnerError("rank 0 died")

    with pytest.raises(LearnerError, match="rank 0 died"):
        await stopping.run(fails())


async def test_a_run_that_fails_while_its_learner_is_well_is_saved_and_ends_with_its_own_error(stopping):
    saved = []

    async def save():
        saved.append(3)
        return 3

    async def fails():
        async with stopping.saving(save, finished=lambda: 3):
            raise RunError("no rollout worker is left")

    with pytest.raises(RunError, match="no rollout worker is left"):
        await stopping.run(fails())
    assert saved == [3]


@pytest.mark.parametrize("error", [CheckpointError("no space left"), TimeoutError()])
async def test_a_failed_run_that_cannot_be_saved_ends_with_its_own_error(stopping, error):
    async def save():
        raise error

    async def fails():
        async with stopping.saving(save, finished=lambda: 3):
            raise RunError("no rollout worker is left")

    with pytest.raises(RunError, match="no rollout worker is left"):
        await stopping.run(fails())


async def test_a_signal_while_a_failed_run_is_saved_is_a_stop_that_saves(stopping):
    calls = []

    async def save():
        calls.append(3)
        await asyncio.sleep(60 if len(calls) == 1 else 0)
        return 3

    async def fails():
        async with stopping.saving(save, finished=lambda: 3):
            raise RunError("no rollout worker is left")

    outcome = await stopped(stopping, fails())
    assert (outcome.code, len(calls)) == (RESUMABLE, 2)


async def test_a_cancellation_by_others_is_no_stop(stopping):
    task = asyncio.create_task(stopping.run(train(stopping, lambda: pytest.fail("nobody stopped it"))))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_step_that_cannot_be_saved_is_told_with_the_code_of_the_signal(stopping):
    async def fails():
        raise CheckpointError("no space left")

    outcome = await stopped(stopping, train(stopping, fails))
    assert outcome.code == 143
    assert "the last step is not saved: no space left" in str(outcome)
    assert "from the checkpoint before" in str(outcome)


@pytest.mark.parametrize(("newest", "code"), [(9, 75), (8, 75), (4, 143), (None, 143)])
async def test_a_save_that_failed_without_a_word_is_known_by_the_step_of_the_newest_checkpoint(newest, code, stopping):
    outcome = await stopped(stopping, train(stopping, lambda: saves(newest), finished=9))
    assert outcome.code == code
    told = f"step 9 is finished, the newest checkpoint is of step {newest or 0}"
    assert (told in str(outcome)) == (code == 143)


async def test_saving_gets_the_grace_time_but_for_what_the_shutdown_needs(ended):
    stopping = Stopping(grace_s=2.0, is_run=True, end=ended.append)
    started = time.monotonic()
    outcome = await stopped(stopping, train(stopping, asyncio.Event().wait))
    assert 1.4 < time.monotonic() - started < 2.0, "a quarter is left to shut down"
    assert outcome.code == 143
    assert "run.stop_grace_s=2" in str(outcome)


@pytest.mark.parametrize(("is_run", "code"), [(True, RESUMABLE), (False, 143)])
async def test_before_a_step_there_is_nothing_to_save(is_run, code, ended):
    stopping = Stopping(is_run=is_run, end=ended.append)
    outcome = await stopped(stopping, asyncio.sleep(60))
    assert outcome.code == code
    assert str(outcome).startswith("stopped by SIGTERM")


async def test_what_ends_in_the_same_moment_has_its_result(stopping):
    async def ends():
        stopping.request(TERM)
        return "done"

    assert await stopping.run(ends()) == "done"


async def test_a_second_signal_ends_the_process_but_not_an_echo_of_the_first(ended):
    clock = Clock()
    stopping = Stopping(end=ended.append, clock=clock)
    stopping.request(TERM)
    stopping.request(TERM)
    clock.now = ECHO_S + 0.1
    stopping.request(HUP)  # a terminal that closes may hang up twice
    assert ended == []
    stopping.request(TERM)
    assert ended == [143]


def test_the_signal_that_follows_a_notice_does_not_interrupt_the_save(ended):
    clock = Clock()
    stopping = Stopping(end=ended.append, clock=clock)
    stopping.request(NOTICE)
    clock.now = 5.0
    stopping.request(TERM)  # Kubernetes ends the pod that it announced to end
    stopping.request(NOTICE)
    assert ended == []
    clock.now = 10.0
    stopping.request(TERM)
    assert ended == [143]


@pytest.mark.parametrize(
    ("has_steps", "code", "words"),
    [(True, 143, "nothing was saved within run.stop_grace_s=0.1"), (False, 75, "before a step was finished")],
)
async def test_whatever_hangs_the_process_ends_with_the_grace_time(has_steps, code, words, capfd):
    ended = threading.Event()
    codes = []
    stopping = Stopping(grace_s=0.1, is_run=True, end=lambda code: (codes.append(code), ended.set()))
    async with contextlib.AsyncExitStack() as steps:
        if has_steps:
            await steps.enter_async_context(stopping.saving(lambda: saves(1), finished=lambda: 1))
        stopping.request(TERM)
        assert ended.wait(5), "this thread hangs"
    assert codes == [code]
    assert words in capfd.readouterr().err


async def test_a_shutdown_that_hangs_after_the_save_ends_with_the_code_of_a_saved_run(capfd):
    codes = []
    stopping = Stopping(grace_s=0.3, is_run=True, end=codes.append)

    async def main():
        try:
            await train(stopping, lambda: saves(7))
        finally:
            await asyncio.sleep(1.5)  # well past the grace time, also on a loaded machine

    outcome = await stopped(stopping, main())
    assert codes == [RESUMABLE] == [outcome.code]
    assert "step 7 is saved" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_reach_a_running_command_and_are_given_back(number, stopping, capsys):
    before = signal.getsignal(number)

    async def main():
        asyncio.get_running_loop().call_later(0.01, os.kill, os.getpid(), number)
        await train(stopping, lambda: saves(2))

    with pytest.raises(typer.Exit) as left, report_errors():
        run_async(main(), stopping)
    assert left.value.exit_code == RESUMABLE
    assert capsys.readouterr().err == f"stopped by {number.name}: step 2 is saved; {CONTINUE}\n"
    assert signal.getsignal(number) is before


def test_a_signal_that_the_command_was_started_to_ignore_stays_ignored(stopping):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does
    try:
        with stopping.listening():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)
        assert stopping.reason is None
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_a_notice_that_the_node_goes_away_stops_the_run(stopping):
    answers = iter([ConnectionError("the control service restarts"), False, True])

    def is_going():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def main():
        with stop_when_preempted(stopping, is_going=is_going, poll_s=0.01):
            await train(stopping, lambda: saves(5))

    with pytest.raises(RunStopped, match="stopped by the notice that its node goes away: step 5 is saved"):
        await asyncio.wait_for(stopping.run(main()), 5)
