import asyncio
import logging

import pytest

from actors.episode import SampleRef, SkippedSample
from actors.errors import RolloutError, SampleError
from actors.fleet.pool import RolloutPool
from actors.play import PlayRequest
from tests.fakes import FakeWorker


def make_pool(*workers, most=4, timeout_s=5.0):
    return RolloutPool(
        workers,
        max_groups_in_flight=most,
        group_timeout_s=timeout_s,
        health_timeout_s=0.05,
    )


async def outcomes_of(pool, rows):
    """One after the other: `played`, or the kind of error that the group ended with."""
    outcomes = []
    for row in rows:
        try:
            await pool.play(request(row))
            outcomes.append("played")
        except RolloutError as error:
            outcomes.append(type(error).__name__)
    return outcomes


def request(row=0):
    ref = SampleRef(dataset="train", row=row, uid=f"0-{row}")
    return PlayRequest(ref=ref, kind="policy", greedy=False, num_episodes=2, run="r", step=1, attempt=0)


async def test_groups_spread_over_the_least_loaded_workers():
    workers = [FakeWorker(name, seconds=0.01) for name in "ab"]
    pool = make_pool(*workers)
    await asyncio.gather(*(pool.play(request(row)) for row in range(12)))
    assert [worker.num_played for worker in workers] == [6, 6]


async def test_no_worker_gets_more_groups_than_it_may_play_at_once():
    worker = FakeWorker("a", seconds=0.01)
    pool = make_pool(worker, most=3)
    await asyncio.gather(*(pool.play(request(row)) for row in range(10)))
    assert worker.most_in_flight == 3


async def test_groups_are_played_in_the_order_in_which_they_came():
    begun = []

    class Noting(FakeWorker):
        async def play(self, request):
            begun.append(request.ref.row)
            return await super().play(request)

    pool = make_pool(Noting("a", seconds=0.001), Noting("b", seconds=0.002), most=2)

    async def play_two(row):
        await pool.play(request(row))
        await pool.play(request(100 + row))

    await asyncio.gather(*(play_two(row) for row in range(30)))
    assert begun[:30] == list(range(30))


async def test_a_group_that_lost_its_worker_goes_before_those_that_wait():
    begun = []

    class Noting(FakeWorker):
        async def play(self, request):
            begun.append((request.ref.row, request.attempt))
            return await super().play(request)

    pool = make_pool(Noting("broken", [RolloutError("engine died")]), Noting("sound", seconds=0.01), most=1)
    await asyncio.gather(*(pool.play(request(row)) for row in range(6)))
    assert begun == [(0, 0), (1, 0), (0, 1), (2, 0), (3, 0), (4, 0), (5, 0)]


async def test_groups_that_are_given_up_leave_their_room_to_others():
    worker = FakeWorker("a", seconds=0.05)
    pool = make_pool(worker, most=2)
    groups = [asyncio.create_task(pool.play(request(row))) for row in range(6)]
    await asyncio.sleep(0.01)
    for group in groups[:5]:  # two that are played, three that wait
        group.cancel()
    await asyncio.wait(groups)
    assert worker.num_played == 1
    await asyncio.gather(*(pool.play(request(row)) for row in range(4)))
    assert worker.most_in_flight == 2


async def test_a_group_whose_worker_fails_is_played_elsewhere_under_the_next_attempt():
    broken, sound = FakeWorker("broken", [RolloutError("engine died")]), FakeWorker("sound")
    pool = make_pool(broken, sound)
    played, _ = await pool.play(request())
    assert sound.num_played == 1
    assert pool.num_workers == 1
    assert played.ref.uid == "0-0"


class Frozen(FakeWorker):
    """Alive, and answers nothing."""

    async def check_health(self):
        await asyncio.sleep(60)


@pytest.mark.parametrize("kind", ["its engine is gone", "it answers nothing"])
async def test_a_worker_that_is_not_well_at_the_deadline_is_killed_and_its_group_played_elsewhere(kind):
    wedged = FakeWorker("wedged", seconds=60) if kind == "its engine is gone" else Frozen("wedged", seconds=60)
    wedged.is_healthy = False
    sound = FakeWorker("sound")
    pool = make_pool(wedged, sound, timeout_s=0.05)
    await pool.play(request())
    assert (sound.num_played, pool.num_workers, wedged.is_killed, sound.is_killed) == (1, 1, True, False)


@pytest.mark.parametrize("num_workers", [1, 2])
async def test_a_bad_sample_is_lost_and_costs_no_worker(num_workers):
    """It used to cost two: the one that it failed on, and the one that it was played on once more."""
    script = [SampleError("placeholders differ")] * (2 // num_workers)
    workers = [FakeWorker(f"w{index}", script) for index in range(num_workers)]
    pool = make_pool(*workers)
    with pytest.raises(SampleError, match="sample 0-0 failed on w0: placeholders differ"):
        await pool.play(request())
    assert pool.num_workers == num_workers
    assert not any(worker.is_killed for worker in workers)
    assert await outcomes_of(pool, [0, 1]) == ["SampleError", "played"]


async def test_a_sample_that_misses_its_deadline_while_the_engine_answers_is_lost_and_its_worker_stays():
    worker = FakeWorker("a", seconds=60)
    pool = make_pool(worker, timeout_s=0.05)
    with pytest.raises(SampleError, match=r"no reply within rollout\.group_timeout_s=0\.05"):
        await pool.play(request())
    worker.seconds = 0
    assert await outcomes_of(pool, [1]) == ["played"]
    assert not worker.is_killed


async def test_groups_that_miss_their_deadline_together_ask_for_the_workers_health_once():
    num_checks = 0

    class Counting(FakeWorker):
        async def check_health(self):
            nonlocal num_checks
            num_checks += 1
            await asyncio.sleep(0.01)

    pool = make_pool(Counting("a", seconds=60), most=8, timeout_s=0.05)
    ended = await asyncio.gather(*(pool.play(request(row)) for row in range(8)), return_exceptions=True)
    assert [type(error) for error in ended] == [SampleError] * 8
    assert num_checks == 1


async def test_a_worker_on_which_alone_samples_fail_is_killed_after_three_in_a_row():
    faulty, sound = FakeWorker("faulty", [SampleError("garbled")] * 9), FakeWorker("sound", seconds=0.02)
    pool = make_pool(faulty, sound, most=1)
    ended = await asyncio.gather(*(pool.play(request(row)) for row in range(6)), return_exceptions=True)
    assert [isinstance(error, SampleError) for error in ended] == [True, False, True, True, False, False]
    assert (faulty.is_killed, sound.is_killed, pool.num_workers) == (True, False, 1)


async def test_samples_that_fail_everywhere_cost_no_worker():
    workers = [FakeWorker(name, [SampleError("placeholders differ")] * 20) for name in "ab"]
    pool = make_pool(*workers, most=1)
    ended = await asyncio.gather(*(pool.play(request(row)) for row in range(20)), return_exceptions=True)
    assert all(isinstance(error, SampleError) for error in ended)
    assert pool.num_workers == 2


async def test_unusable_rows_do_not_clear_a_worker():
    class Skipping(FakeWorker):
        async def play(self, request):
            if request.ref.row % 2:
                return SkippedSample(ref=request.ref, reason="truncated"), None
            raise SampleError("garbled")

    faulty = Skipping("faulty")
    pool = make_pool(faulty, FakeWorker("sound"))
    ended = await outcomes_of(pool, range(5))
    assert ended == ["SampleError", "played", "SampleError", "played", "SampleError"]
    assert faulty.is_killed


async def test_when_every_attempt_fails_the_error_names_the_causes():
    pool = make_pool(FakeWorker("a", [RolloutError("one")]), FakeWorker("b", [RolloutError("two")]))
    with pytest.raises(RolloutError, match=r"a: one; b: two"):
        await pool.play(request())
    with pytest.raises(RolloutError, match="no rollout worker is left"):
        await pool.play(request(1))


async def test_a_bug_is_not_mistaken_for_a_failure():
    pool = make_pool(FakeWorker("a", [KeyError("bug")]))
    with pytest.raises(KeyError):
        await pool.play(request())
    assert pool.num_workers == 1


async def test_a_worker_that_is_dropped_is_killed_once_and_its_groups_are_played_elsewhere(caplog):
    class Killable(FakeWorker):
        """Its calls fail once it is killed, as those of a process do."""

        def __init__(self, name):
            super().__init__(name)
            self.num_kills = 0
            self._killed = asyncio.Event()

        async def play(self, request):
            await self._killed.wait()
            raise RolloutError("the process has ended")

        def kill(self):
            self.num_kills += 1
            self._killed.set()

    late, sound = Killable("late"), FakeWorker("sound")
    pool = make_pool(late, sound)
    groups = [asyncio.create_task(pool.play(request(row))) for row in range(4)]
    await asyncio.sleep(0.01)
    assert sound.num_played < 4, "some of them are on the worker that will go"
    with caplog.at_level(logging.WARNING):
        pool.drop(late, "it missed a version")
        pool.drop(late, "it missed a version, again")
    await asyncio.gather(*groups)
    assert (sound.num_played, late.num_kills, pool.workers) == (4, 1, [sound])
    assert caplog.messages == ["late is dropped: it missed a version"]


async def test_a_pool_is_starved_from_the_moment_that_groups_wait_and_no_worker_may_get_any():
    leaves, comes = FakeWorker("leaves", seconds=0.01), FakeWorker("comes")
    pool = make_pool(leaves, most=1)
    pool.refills = True
    groups = [asyncio.create_task(pool.play(request(row))) for row in range(3)]
    await asyncio.sleep(0.005)
    assert pool.starved_s == 0, "they wait for a worker that is there"
    pool.drain(leaves)
    await asyncio.sleep(0.1)
    assert pool.starved_s >= 0.1
    pool.add(comes)
    assert pool.starved_s == 0
    await asyncio.gather(*groups)
    pool.drain(comes)
    await asyncio.sleep(0.01)
    assert pool.starved_s == 0, "nobody waits"


async def test_when_the_last_worker_is_dropped_waiting_groups_end():
    worker = FakeWorker("a", seconds=60)
    pool = make_pool(worker, most=1)
    playing, waiting = (asyncio.create_task(pool.play(request(row))) for row in range(2))
    await asyncio.sleep(0.01)
    pool.drop(worker, "it missed a version")
    with pytest.raises(RolloutError, match="no rollout worker is left"):
        await waiting
    playing.cancel()


@pytest.mark.parametrize(
    ("step", "reason"), [(RolloutError("out of memory"), "out of memory"), (None, "no answer")], ids=["fails", "hangs"]
)
async def test_a_worker_that_does_not_fall_asleep_is_dropped(caplog, step, reason):
    class Restless(FakeWorker):
        async def sleep(self):
            if step is None:
                await asyncio.sleep(60)
            raise step

    restless, sound = Restless("restless"), FakeWorker("sound")
    pool = make_pool(restless, sound)
    with caplog.at_level(logging.WARNING):
        await pool.sleep()
    assert (pool.workers, restless.is_killed, sound.is_asleep) == ([sound], True, True)
    assert caplog.messages == [f"restless is dropped: falling asleep: {reason}"]
