"""The executor of the fleet with fake workers, a real pool and a real weight channel, in virtual time."""

import asyncio
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.errors import BrokenWorkerError, LostBucketError, RolloutError, RunError, WeightSyncError
from actors.play import PlayRequest
from cluster.runtime import members as executor
from configs.ranges import Range
from tests.actors.fleet.test_pool import request
from tests.cluster.runtime.scripted_fleet import POLICY, Cluster, fleet
from tests.virtual_time import in_virtual_time, now


@pytest.fixture(scope="module", autouse=True)
def instant_looks():
    """What a look takes on this machine must not show in virtual time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor, "MAX_SHARE", math.inf)
        yield


@in_virtual_time
async def test_the_run_starts_with_its_minimum_and_a_late_member_joins_by_itself():
    async with fleet(1, 2, settings=lambda slot, _: {"ready_s": 1.0 + 50 * slot}) as run:
        assert now() < 1010
        assert run.states() == [("0", "serving", 0), ("1", "starting", None)]
        await asyncio.sleep(60)
        assert run.states() == [("0", "serving", 0), ("1", "serving", 0)]
        assert run.kinds() == ["join", "join"]


@in_virtual_time
async def test_a_joiner_that_is_slow_to_take_the_weights_never_serves_an_old_version():
    async with fleet(1, 2, settings=lambda slot, _: {"ready_s": 1.0 + 50 * slot}) as run:
        joiner = run.workers[1]
        joiner.receive_s = 30.0
        await asyncio.sleep(60)
        assert run.states()[1] == ("1", "syncing", None)
        publishing = asyncio.create_task(run.publish())  # in the middle of its sync
        playing = [asyncio.create_task(run.pool.play(request(row))) for row in range(40)]
        await publishing
        await asyncio.gather(*playing)
        assert run.states()[1] == ("1", "serving", 1)
        assert joiner.played_under
        assert set(joiner.played_under) == {1}


@pytest.mark.parametrize("keeps_last", [True, False])
def test_between_publications_a_joiner_takes_what_is_kept_or_waits(keeps_last):
    @in_virtual_time
    async def check():
        late = {"ready_s": 20.0}
        async with fleet(1, 2, keeps_last=keeps_last, settings=lambda slot, _: late if slot else {}) as run:
            await asyncio.sleep(40)
            expected = ("1", "serving", 0) if keeps_last else ("1", "syncing", None)
            assert run.states()[1] == expected
            if not keeps_last:
                assert run.events[-1].detail == "it is up and waits for the learner's next version"
                await run.publish()
                await asyncio.sleep(0.1)
                assert run.states()[1] == ("1", "serving", 1)

    check()


@in_virtual_time
async def test_where_nothing_is_kept_a_replacement_gets_the_version_again_if_it_is_the_only_one():
    async with fleet(1, 1, keeps_last=False) as run:
        run.learner.version = 0  # the learner waits for groups of this version
        run.workers[0].die()
        await run.pool.play(request())
        assert run.states() == [("0", "serving", 0)]
        assert run.kinds() == ["join", "leave", "restart", "join"]
        first, *_, last = run.events
        assert first.seconds is None
        assert last.seconds > 1, "a group had waited for it, which is no useful time"


@in_virtual_time
async def test_a_dead_members_groups_are_played_elsewhere_once_and_it_is_replaced():
    async with fleet(2, 2) as run:
        first, second = run.workers
        groups = [asyncio.create_task(run.pool.play(request(row))) for row in range(4)]
        await asyncio.sleep(1)
        first.die()
        await asyncio.gather(*groups)
        await asyncio.sleep(10)
        assert first.is_killed, "it keeps neither process nor GPU"
        assert len(first.requests) == 2
        assert sorted(each.ref.row for each in second.requests + run.workers[2].requests) == [0, 1, 2, 3]
        again = {each.ref.row: each.attempt for each in second.requests + run.workers[2].requests}
        assert {row: again[row] for row in (first.requests[0].ref.row, first.requests[1].ref.row)} == {
            row.ref.row: 1 for row in first.requests
        }
        assert [state for _, state, _ in run.states()] == ["serving", "serving"]


@in_virtual_time
async def test_a_wedged_member_is_found_within_its_deadline_though_its_process_lives():
    async with fleet(2, 2, cluster=Cluster(nodes={f"actor {i}.{j}": "n" for i in (0, 1) for j in range(3)})) as run:
        wedged, sound = run.workers
        wedged.seconds, wedged.is_healthy = 10_000.0, False
        started = now()
        await asyncio.gather(*(run.pool.play(request(row)) for row in range(2)))
        assert now() - started < POLICY.progress_timeout_s + 10
        assert (wedged.is_killed, sound.is_killed) == (True, False)
        assert "wedged" in run.kinds()


@in_virtual_time
async def test_a_slow_member_that_generates_stays():
    async with fleet(1, 1, cluster=Cluster(nodes={"actor 0.0": "n"})) as run:
        run.workers[0].seconds = 500.0
        await run.pool.play(request())
        assert run.kinds() == ["join"]


@in_virtual_time
async def test_a_death_while_starting_costs_a_restart_and_not_the_run():
    dying = {"broken": RolloutError("NodeDiedError: node 7 is gone")}
    async with fleet(1, 1, settings=lambda _, attempt: {} if attempt else dying) as run:
        assert run.states() == [("0", "serving", 0)]
        assert [event.line() for event in run.events[:2]] == [
            "rollout worker 0: leave: NodeDiedError: node 7 is gone",
            "rollout worker 0: restart: restart 1 of rollout.max_restarts=2",
        ]


@in_virtual_time
async def test_code_that_raises_ends_a_start_at_once_with_its_error():
    broken = {"broken": BrokenWorkerError("rollout worker 0: ValueError: no such model")}
    with pytest.raises(RolloutError, match=r"^rollout worker 0: ValueError: no such model$"):
        async with fleet(1, 2, settings=lambda *_: broken):
            pytest.fail("it came up")
    assert now() < 1010


@in_virtual_time
async def test_a_run_that_may_not_wait_stops_with_one_error_that_names_the_cause():
    policy = replace(POLICY, waits_when_none_left=False)
    async with fleet(1, 1, policy=policy) as run:
        for number in range(3):
            while not (run.pool.num_workers and len(run.workers) == number + 1):
                await asyncio.sleep(0.1)
            run.workers[-1].die("OutOfMemoryError: the node was low on memory")
            await asyncio.sleep(0.1)
        assert run.pool.num_workers == 0
        for _ in range(2):
            with pytest.raises(RunError, match=r"no rollout worker is left.*OutOfMemoryError: the node was low"):
                await run.pool.play(request())


@in_virtual_time
async def test_a_run_that_waits_goes_on_when_its_budget_has_come_back():
    async with fleet(1, 1, policy=replace(POLICY, max_restarts=1, restart_window_s=200.0)) as run:
        for number in range(2):
            while not (run.pool.num_workers and len(run.workers) == number + 1):
                await asyncio.sleep(0.1)
            run.workers[-1].die()
            await asyncio.sleep(0.1)
        await run.pool.play(request())
        assert (len(run.workers), "pending" in run.kinds()) == (3, True)


@in_virtual_time
async def test_a_node_that_is_drained_gives_its_groups_time_and_its_member_is_replaced():
    cluster = Cluster(nodes={f"actor 0.{number}": f"node {number}" for number in range(3)})
    async with fleet(1, 1, cluster=cluster) as run:
        run.workers[0].seconds = 10.0
        playing = asyncio.create_task(run.pool.play(request(0)))
        await asyncio.sleep(0.1)
        cluster.draining = {"node 0": 60.0}
        await asyncio.sleep(2)
        assert run.states()[0][1] == "draining"
        await asyncio.gather(playing, run.pool.play(request(1)))
        assert [len(worker.requests) for worker in run.workers] == [1, 1]
        assert run.kinds() == ["join", "preempted", "leave", "join"]


@in_virtual_time
async def test_scaling_down_drains_and_scaling_up_starts():
    async with fleet(1, 3) as run:
        run.desired = Range(minimum=1, maximum=1)
        await asyncio.sleep(3)
        assert run.states() == [("0", "serving", 0)]
        run.desired = Range(minimum=1, maximum=2)
        await asyncio.sleep(5)
        assert [state for _, state, _ in run.states()] == ["serving", "serving"]
        assert run.kinds().count("scale") == 2
        assert "restart" not in run.kinds(), "it costs nothing of the budget"


@in_virtual_time
async def test_a_member_without_room_is_told_of_and_joins_when_there_is_some():
    cluster = Cluster(nodes={"actor 0.0": "node"})
    settings = {"settings": lambda slot, _: {"ready_s": 1.0 + 400 * slot}}
    async with fleet(1, 2, cluster=cluster, **settings) as run:
        await asyncio.sleep(150)
        (view,) = [each for each in run.members.members() if each.state == "starting"]
        assert (view.node, view.waits_for) == (None, "a node with room for it")
        assert view.for_s > 100, "longer than an engine may take to start"
        cluster.nodes["actor 1.0"] = "new node"
        await asyncio.sleep(99)
        assert run.members.members()[1].node == "new node"


@in_virtual_time
async def test_a_run_whose_minimum_never_gets_room_gives_up_with_the_reason():
    def placed_only(slot, attempt):
        return {"ready_s": 1.0 if slot == 0 else 10_000.0}

    with pytest.raises(
        RolloutError, match=r"^1 of 2 rollout workers are there .*: rollout worker 1 waits for a node with room for it$"
    ):
        async with fleet(2, 2, cluster=Cluster(nodes={"actor 0.0": "node"}), settings=placed_only):
            pytest.fail("it came up")


@in_virtual_time
async def test_a_joiner_that_cannot_take_the_weights_is_replaced_and_one_whose_bytes_were_lost_waits():
    async with fleet(1, 2, settings=lambda slot, _: {"ready_s": 1.0 + 5 * slot}) as run:
        run.workers[1].failures = [WeightSyncError("no room in /dev/shm")] * 2
        await asyncio.sleep(20)
        assert (run.workers[1].is_killed, len(run.workers)) == (True, 3)
        assert any("no room in /dev/shm" in event.detail for event in run.events)
        run.workers[1].failures = []
    async with fleet(1, 2, settings=lambda slot, _: {"ready_s": 1.0 + 5 * slot}) as run:
        run.workers[1].failures = [LostBucketError("bucket 0")] * 3
        await asyncio.sleep(20)
        assert (run.states()[1], len(run.workers)) == (("1", "serving", 0), 2)


@in_virtual_time
async def test_members_that_are_up_end_their_own_processes_and_others_are_killed():
    async with fleet(1, 2, settings=lambda slot, _: {"ready_s": 1.0 + 500 * slot}) as run:
        up, starting = run.workers
    assert (up.is_shut_down, up.is_killed, starting.is_shut_down, starting.is_killed) == (True, False, False, True)


@in_virtual_time
async def test_a_bug_in_a_member_ends_the_run():
    async with fleet(1, 2, settings=lambda slot, _: {"broken": KeyError("bug"), "ready_s": 9.0} if slot else {}) as run:
        await asyncio.sleep(20)
        with pytest.raises(KeyError):
            await run.pool.play(request())


FAULTS = st.sampled_from(["die", "publish", "drain", "scale", "wait", "wait"])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(FAULTS, st.integers(0, 2), st.floats(0.1, 9)), max_size=12), st.booleans())
def test_every_group_is_played_once_however_members_come_and_go(faults, keeps_last):
    @in_virtual_time
    async def check():
        nodes = {f"actor {slot}.{attempt}": f"node {slot}.{attempt}" for slot in range(3) for attempt in range(50)}
        cluster = Cluster(nodes=nodes)
        policy = replace(POLICY, max_restarts=99)
        async with fleet(1, 3, policy=policy, keeps_last=keeps_last, cluster=cluster) as run:
            run.learner.version = 0
            groups = [asyncio.create_task(run.pool.play(request(row))) for row in range(30)]
            for fault, number, pause_s in faults:
                alive = [worker for worker in run.workers if not worker.is_killed]
                match fault:
                    case "die" if alive:
                        alive[number % len(alive)].die()
                    case "publish":
                        await run.channel.publish()
                    case "drain" if alive:
                        worker = alive[number % len(alive)]
                        cluster.draining[nodes[worker.actor_id]] = pause_s
                    case "scale":
                        run.desired = Range(minimum=1, maximum=1 + number)
                await asyncio.sleep(pause_s)
                assert len(run.members.members()) <= 3
            played = await asyncio.gather(*groups, return_exceptions=True)
            starts = [each.ref.row for worker in run.workers for each in worker.requests]
            for row, outcome in enumerate(played):
                if isinstance(outcome, BaseException):
                    assert "failed on every attempt" in str(outcome), "it lost two workers"
                    assert starts.count(row) == 2
                else:
                    assert outcome[0].ref.row == row
                    assert starts.count(row) <= 2
            for worker in run.workers:
                for asked in worker.requests:
                    assert isinstance(asked, PlayRequest)
                assert -1 not in worker.played_under, "nobody serves without weights"

    check()
