"""The parts of the adapter that need no engine. The engine itself is tested in tests/ray."""

import asyncio

import pytest

from actors.engine.gate import TurnGate
from actors.engine.vllm_engine import collapse_placeholders


@pytest.mark.parametrize(
    ("expanded", "collapsed"),
    [
        ([], []),
        ([7], [7]),
        ([1, 7, 7, 7, 2], [1, 7, 2]),
        ([7, 7, 1, 1, 7], [7, 1, 1, 7]),
        ([1, 7, 7, 2, 7, 7, 7, 3], [1, 7, 2, 7, 3]),
    ],
)
def test_each_picture_keeps_one_placeholder(expanded, collapsed):
    assert collapse_placeholders(expanded, 7) == collapsed


async def test_a_commit_waits_for_turns_in_flight_and_holds_new_ones_back():
    gate, log, finish = TurnGate(), [], asyncio.Event()

    async def turn(name, until=None):
        async with gate.turn():
            log.append(f"{name} starts")
            if until:
                await until.wait()
            log.append(f"{name} ends")

    async def commit():
        async with gate.closed(drain=True):
            log.append("commit")

    first = asyncio.create_task(turn("first", finish))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    committing = asyncio.create_task(commit())
    await asyncio.sleep(0.01)
    second = asyncio.create_task(turn("second"))
    await asyncio.sleep(0.01)
    assert log == ["first starts"]
    finish.set()
    await asyncio.gather(first, committing, second)
    assert log == ["first starts", "first ends", "commit", "second starts", "second ends"]


async def test_a_commit_between_two_engine_steps_waits_for_no_turn_but_holds_new_ones_back():
    gate, log, finish = TurnGate(), [], asyncio.Event()

    async def turn(name):
        async with gate.turn():
            log.append(f"{name} starts")
            await finish.wait()
        log.append(f"{name} ends")

    first = asyncio.create_task(turn("first"))
    await asyncio.sleep(0.01)
    async with asyncio.timeout(1), gate.closed(drain=False):
        second = asyncio.create_task(turn("second"))
        await asyncio.sleep(0.01)
        log.append("commit")
    finish.set()
    await asyncio.gather(first, second)
    assert log[:3] == ["first starts", "commit", "second starts"]
    assert sorted(log[3:]) == ["first ends", "second ends"]


async def test_a_commit_that_is_given_up_lets_turns_through_again():
    gate, finish = TurnGate(), asyncio.Event()

    async def turn():
        async with gate.turn():
            await finish.wait()

    first = asyncio.create_task(turn())
    await asyncio.sleep(0.01)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), gate.closed(drain=True):
            pass
    finish.set()
    async with asyncio.timeout(1):
        await asyncio.gather(first, turn())
