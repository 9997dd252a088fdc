import asyncio

import pytest

from actors.episode import SampleRef
from actors.errors import RolloutError, WeightSyncError
from actors.fleet.pool import RolloutPool
from actors.play import PlayRequest
from tests.actors.engine.test_weight_receiver import make_version
from tests.fakes import FakeWorker


def make_pool(*workers, most=4, timeout_s=5.0):
    return RolloutPool(workers, max_groups_in_flight=most, group_timeout_s=timeout_s, sync_timeout_s=1.0)


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


async def test_a_wedged_worker_is_dropped_at_the_deadline():
    wedged, sound = FakeWorker("wedged", seconds=60), FakeWorker("sound")
    pool = make_pool(wedged, sound, timeout_s=0.05)
    await pool.play(request())
    assert pool.num_workers == 1


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


async def test_a_version_reaches_every_worker():
    workers = [FakeWorker("a"), FakeWorker("b")]
    pool = make_pool(*workers)
    manifest, buckets = make_version(7)
    await pool.publish(manifest, buckets)
    assert [worker.version for worker in workers] == [7, 7]
    assert pool.version == 7


async def test_a_worker_that_reports_another_digest_is_dropped_and_the_rest_go_on():
    liar, sound = FakeWorker("liar"), FakeWorker("sound")
    liar.commit_digest = "0" * 64
    pool = make_pool(liar, sound)
    await pool.publish(*make_version(1))
    assert pool.num_workers == 1


async def test_a_version_that_reaches_nobody_stops_the_run():
    liar = FakeWorker("liar")
    liar.commit_digest = "0" * 64
    with pytest.raises(WeightSyncError, match="reached no rollout worker"):
        await make_pool(liar).publish(*make_version(1))
