"""A learner whose ranks are killed, stuck, late and lost with their nodes, in virtual time."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.errors import LearnerError
from tests.learner.elastic_runs import GROUPS, UPDATE, once, trained
from tests.learner.scripted_ranks import World
from tests.virtual_time import in_virtual_time, now


@pytest.mark.parametrize("what", ["form", "begin", "learn", "finish"])
@pytest.mark.parametrize("number", [0, 1])
@in_virtual_time
async def test_a_killed_rank_costs_nothing_but_the_update_in_flight(what, number):
    world = World("a", "b")
    learner = await trained(world, 1, num_ranks="1..2")
    world.on_call = once(lambda rank, called: rank.number == number and called == what, lambda rank: rank.die())
    if what == "form":
        world.ranks[1 - number].die()
    for _ in range(3):
        await learner.update(GROUPS)
        await asyncio.sleep(5)
    assert learner.version == 8
    assert all(rank.history == UPDATE * 4 for rank in world.serving())
    assert learner.num_ranks == 2, "it grew back"
    assert {"leave", "reform", "join"} <= set(world.kinds)
    await learner.shutdown()


@in_virtual_time
async def test_the_parts_of_a_streamed_update_are_replayed_in_order():
    world = World("a", "b")
    learner = await trained(world, 1, num_ranks="1..2")
    learner.begin()
    await learner.learn(GROUPS[:3])
    await learner.learn(GROUPS[3:6])
    world.nodes["b"] = False
    world.on_call = once(lambda rank, called: rank.node == "b" and called == "learn", lambda rank: rank.die())
    await learner.learn(GROUPS[6:])
    report = await learner.finish()
    assert report.metrics == {"size": 1}
    parts = (frozenset(range(3)), frozenset(range(3, 6)), "step", frozenset({6, 7}), "step")
    assert world.serving()[0].history == UPDATE + parts
    replayed = [detail for kind, _, detail in world.events if kind == "replay"]
    assert replayed == ["6 groups in 2 parts", "2 groups that were in flight"]
    await learner.shutdown()


@pytest.mark.parametrize("stopped", [True, False])
@in_virtual_time
async def test_a_wedged_rank_is_found_in_seconds_and_the_others_are_freed(stopped):
    world = World("a", "b")
    learner = await trained(world, 1, num_ranks="1..2")

    def wedge(rank):
        rank.is_stopped = stopped
        rank.stuck_in = "learn"
        rank.num_passes -= 1  # behind those that wait for it

    world.on_call = once(lambda rank, called: rank.number == 1 and called == "learn", wedge)
    started = now()
    await learner.update(GROUPS)
    assert now() - started < 10 + 2 + 5, "stall_timeout_s, two questions, and then to form and to replay"
    wedged = [event for event in world.events if event[0] == "wedged"]
    assert [who for _, who, _ in wedged] == ["learner rank 1"]
    assert ("no answer" if stopped else "no progress") in wedged[0][2]
    assert 10 < world.lost_s["reform"] < now() - started, "all that was waited for in vain is lost time"
    assert all(rank.history == UPDATE * 2 for rank in world.serving())
    await learner.shutdown()


@in_virtual_time
async def test_the_first_update_may_take_longer_for_a_pass():
    world = World("a")
    learner = world.learner()
    await learner.start()

    def compile_for_long(rank):
        rank.stuck_in = "learn"
        asyncio.get_running_loop().call_later(30, rank.die)

    world.on_call = once(lambda rank, called: called == "learn", compile_for_long)
    started = now()
    await learner.update(GROUPS)
    assert 30 < now() - started < 50, "it died at 30 s and was not killed before"
    assert "wedged" not in world.kinds
    await learner.shutdown()


@in_virtual_time
async def test_a_lost_node_takes_no_state_with_it():
    world = World("a", "b")
    learner = await trained(world, 2, num_ranks="1..2")
    await asyncio.sleep(5)
    world.lose_node("a")
    await learner.update(GROUPS)
    (left,) = world.serving()
    assert (left.node, left.history) == ("b", UPDATE * 3)
    world.nodes["c"] = True
    await asyncio.sleep(20)
    await learner.update(GROUPS)
    assert [rank.history for rank in world.serving()] == [UPDATE * 4] * 2
    await learner.shutdown()


@in_virtual_time
async def test_a_single_rank_restarts_from_the_memory_of_another_node():
    world = World("a", "b")
    learner = await trained(world, 2, num_ranks=1)
    await asyncio.sleep(5)
    assert list(world.holders) == ["b"], "the copy is not where the rank is"
    world.lose_node("a")
    await learner.update(GROUPS)
    (left,) = world.serving()
    assert (left.node, left.history) == ("b", UPDATE * 3)
    await learner.shutdown()


@in_virtual_time
async def test_the_processes_that_will_hold_copies_are_asked_for_before_the_first_update():
    world = World("a", "b")
    learner = await trained(world, 0, num_ranks="1..2")
    assert sorted(world.holders) == ["a", "b"]
    await learner.shutdown()


@in_virtual_time
async def test_a_loss_before_the_copies_are_in_place_replays_the_update_before_too():
    world = World("a", "b")
    learner = await trained(world, 2, num_ranks="1..2")  # the copies of the second update are under way
    world.lose_node("b")
    await learner.update(GROUPS)
    (left,) = world.serving()
    assert left.history == UPDATE * 3
    replayed = [detail for kind, _, detail in world.events if kind == "replay"]
    assert replayed == ["8 groups in 1 parts", "8 groups that were in flight"]
    assert world.lost_s["replay"] >= 0.5, "a pass was done once more"
    await learner.shutdown()


@in_virtual_time
async def test_without_any_memory_the_run_ends_with_a_reason():
    world = World("a", "b")
    learner = await trained(world, 2, num_ranks="1..2")
    await asyncio.sleep(5)
    world.lose_node("a")
    world.lose_node("b")
    world.nodes["c"] = True
    with pytest.raises(LearnerError, match="the state since the newest checkpoint is lost"):
        await learner.update(GROUPS)
    await learner.shutdown()


@in_virtual_time
async def test_a_loss_before_the_first_copy_starts_again_from_the_loaded_state():
    world = World("a", "b")
    world.disk["step-1"] = UPDATE
    learner = world.learner(num_ranks="1..2")
    await learner.start()
    await learner.load("/runs", "step-1")
    world.on_call = once(lambda rank, called: rank.number == 0 and called == "finish", lambda rank: rank.die())
    await learner.update(GROUPS)
    assert learner.version == 4
    assert all(rank.history == UPDATE * 2 for rank in world.serving())
    await learner.shutdown()


@in_virtual_time
async def test_a_loaded_state_replaces_what_is_held_in_memory():
    world = World("a", "b")
    world.disk["step-1"] = ("older", "step")
    learner = await trained(world, 2, num_ranks="1..2")
    await learner.load("/runs", "step-1")
    world.ranks[1].die()
    await learner.update(GROUPS)
    assert all(rank.history == ("older", "step", *UPDATE) for rank in world.serving())
    await learner.shutdown()


@in_virtual_time
async def test_an_update_that_always_kills_its_ranks_ends_the_run():
    world = World("a", "b")
    learner = await trained(world, 1, num_ranks="1..2")
    world.on_call = lambda rank, called: rank.die() if called == "finish" and rank.rank == 0 else None
    with pytest.raises(LearnerError, match="the same update failed 5 times"):
        await learner.update(GROUPS)
    await learner.shutdown()


@in_virtual_time
async def test_an_error_of_the_update_itself_ends_the_run_at_once():
    world = World("a", "b")
    learner = await trained(world, 1, num_ranks=2)

    async def refuse(plan, pictures):
        raise LearnerError("3 optimizer steps in a row had a non-finite loss")

    world.ranks[1].learn = refuse
    started = now()
    with pytest.raises(LearnerError, match="3 optimizer steps in a row"):
        await learner.update(GROUPS)
    assert now() - started < 5
    assert learner.generation == 1
    await learner.shutdown()


@in_virtual_time
async def test_a_cancelled_update_leaves_nothing_behind():
    world = World("a", "b")
    learner = await trained(world, 1, num_ranks=2)
    learner.begin()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await learner.learn(GROUPS[:4])
    await learner.update(GROUPS)
    assert all(rank.history == UPDATE * 2 for rank in world.serving())
    await learner.shutdown()


@in_virtual_time
async def test_a_rank_that_could_not_be_reached_for_a_moment_is_not_dead():
    world = World("a", "b")
    learner = await trained(world, 1, num_ranks=2)
    world.on_call = once(lambda rank, called: called == "learn", lambda rank: setattr(rank, "is_cut_off", True))
    await learner.update(GROUPS)
    assert [rank.history for rank in world.ranks] == [UPDATE * 2] * 2, "the same two processes"
    assert world.kinds.count("join") == 2
    assert "leave" not in world.kinds
    await learner.shutdown()


def strike(rank, fault):
    match fault:
        case "kill":
            rank.die()
        case "stop":
            rank.is_stopped = True
        case "stick":
            rank.stuck_in = "learn"
        case "cut":
            rank.is_cut_off = True


FAULTS = st.tuples(
    st.integers(0, 11),
    st.sampled_from(["kill", "stop", "stick", "cut"]),
    st.sampled_from(["form", "restore", "begin", "learn", "finish"]),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(FAULTS, max_size=4), st.integers(1, 3))
def test_whatever_happens_to_processes_nothing_is_learned_twice_or_not_at_all(faults, maximum):
    in_virtual_time(played)(faults, maximum)


async def played(faults, maximum):
    """Each fault strikes the rank of that number (of twelve, modulo those there are) at its next call of a kind."""
    world = World("a", "b", "c", "d")
    learner = await trained(world, 1, num_ranks=f"1..{maximum}")
    waiting = list(faults)

    def on_call(rank, called):
        for fault in waiting:
            number, kind, what = fault
            if called == what and rank.rank == number % rank.meeting.size:
                waiting.remove(fault)
                strike(rank, kind)
                return

    world.on_call = on_call
    for number in range(2, 5):
        await learner.update(GROUPS)
        assert all(member.history == UPDATE * number for member in world.serving())
        await asyncio.sleep(3)
    assert learner.version == 8
    await learner.shutdown()


@in_virtual_time
async def test_work_that_ended_as_another_call_lost_a_rank_is_done_again():
    world = World("a", "b")
    learner = await trained(world, 1, num_ranks="1..2")
    learner.begin()
    learning = asyncio.create_task(learner.learn(GROUPS))
    await asyncio.sleep(0.9)  # in its last half second
    opening = asyncio.create_task(learner.open_weights(1))
    await asyncio.sleep(0)
    world.ranks[0].die()
    await asyncio.gather(learning, opening)
    await learner.finish()
    assert all(rank.history == UPDATE * 2 for rank in world.serving())
    await learner.shutdown()
