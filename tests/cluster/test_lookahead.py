import asyncio

import pytest

from cluster.lookahead import Lookahead


class Producer:
    """Numbers batches, and notes how many had been taken when each was started."""

    def __init__(self) -> None:
        self.num_taken = 0
        self.started_at: list[int] = []

    async def __call__(self) -> int:
        self.started_at.append(self.num_taken)
        await asyncio.sleep(0)
        return len(self.started_at) - 1


@pytest.mark.parametrize("depth", [0, 1, 3])
async def test_batch_n_is_started_at_most_depth_trips_early(depth):
    producer = Producer()
    async with Lookahead(producer, depth=depth, num_batches=99) as ahead:
        for number in range(8):
            assert await ahead.take() == number
            for _ in range(20):  # learning takes a while: whatever may run ahead does
                await asyncio.sleep(0)
            producer.num_taken = number + 1
    lags = [number - taken for number, taken in enumerate(producer.started_at)]
    assert max(lags) == depth
    assert min(lags) >= 0


async def test_depth_zero_produces_nothing_that_is_not_asked_for():
    producer = Producer()
    async with Lookahead(producer, depth=0, num_batches=99) as ahead:
        await asyncio.sleep(0.01)
        assert producer.started_at == []
        await ahead.take()
        await asyncio.sleep(0.01)
        assert producer.started_at == [0]


@pytest.mark.parametrize("depth", [0, 2, 9])
async def test_nothing_is_produced_beyond_the_last_batch(depth):
    producer, told = Producer(), []
    async with Lookahead(producer, depth=depth, num_batches=5, allow=told.append) as ahead:
        assert [await ahead.take() for _ in range(5)] == [0, 1, 2, 3, 4]
        await asyncio.sleep(0.01)
    assert len(producer.started_at) == 5
    assert max(told) == 5


async def test_what_the_producer_raises_comes_out_of_take():
    async def produce():
        raise KeyError("bug")

    with pytest.raises(KeyError):
        async with Lookahead(produce, depth=1, num_batches=99) as ahead:
            await ahead.take()


async def test_leaving_cancels_what_is_being_produced():
    cancelled = asyncio.Event()

    async def produce():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with Lookahead(produce, depth=1, num_batches=99):
        await asyncio.sleep(0.01)
    assert cancelled.is_set()
