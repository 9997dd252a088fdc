"""The parts of the worker that need no engine. The whole is tested in tests/ray."""

import asyncio
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from actors.errors import RolloutError, SampleError
from actors.fleet.worker import RolloutWorker, most_severe

SAMPLE, WORKER, BUG = SampleError("placeholders differ"), RolloutError("engine died"), KeyError("bug")


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([SAMPLE], SAMPLE),
        ([SAMPLE, SampleError("later")], SAMPLE),
        ([SAMPLE, WORKER], WORKER),
        ([WORKER, SAMPLE], WORKER),
        ([SAMPLE, WORKER, BUG], BUG),
    ],
)
def test_a_group_fails_with_the_gravest_error_of_its_episodes(errors, expected):
    assert most_severe(ExceptionGroup("episodes", errors)) is expected


class Engine:
    """Its sign of life waits behind other turns; a turn ends when it is let."""

    def __init__(self):
        self.turn, self.life = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def __call__(self, *arguments):
        await self.turn.wait()
        return "completion"

    async def check_health(self):
        await self.life


def worker_with(engine):
    worker = object.__new__(RolloutWorker)
    worker._engine, worker._receiver, worker._generated = engine, SimpleNamespace(version=3), asyncio.Event()
    return worker


async def test_a_turn_that_ends_shows_as_much_life_as_a_token_for_the_question():
    engine = Engine()
    worker = worker_with(engine)
    turn = asyncio.create_task(worker._generate((), (), None))
    asked = asyncio.create_task(worker.check_health())
    await asyncio.sleep(0.01)
    assert not asked.done()
    engine.turn.set()
    assert await asked == 3
    await turn


async def test_an_engine_that_is_dead_or_silent_shows_none():
    engine = Engine()
    engine.life.set_exception(RolloutError("vLLM's engine died"))
    with pytest.raises(RolloutError, match="died"):
        await worker_with(engine).check_health()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await worker_with(Engine()).check_health()


def test_sigterm_ends_the_process_whatever_handler_there_was():
    program = (
        "import os, signal\n"
        "from actors.fleet.worker import end_on_sigterm\n"
        "signal.signal(signal.SIGTERM, lambda *_: None)\n"
        "end_on_sigterm()\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "signal.pause()\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == -signal.SIGTERM
