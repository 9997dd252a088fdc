"""A learner whose ranks join, are replaced by spares and are resized by hand, in virtual time."""

import asyncio

import pytest

from actors.errors import LearnerError, WeightSyncError
from configs.ranges import Range
from tests.learner.elastic_runs import GROUPS, UPDATE, once, trained
from tests.learner.scripted_ranks import ScriptedHolder, World
from tests.virtual_time import in_virtual_time, now


@in_virtual_time
async def test_a_run_starts_with_the_fewest_and_the_others_join_between_updates():
    world = World("a")
    learner = world.learner(num_ranks="1..3")
    await learner.start()
    assert learner.num_ranks == 1
    await learner.update(GROUPS)
    world.nodes.update(b=True, c=True)
    await asyncio.sleep(20)
    assert learner.num_ranks == 1, "never in the midst of nothing"
    assert sorted(member.state for member in learner.members()) == ["serving", "spare", "spare"]
    await learner.update(GROUPS)
    assert (learner.num_ranks, learner.generation) == (3, 2)
    assert [rank.history for rank in world.serving()] == [UPDATE * 2] * 3
    assert "reform" in world.kinds
    assert "replay" not in world.kinds
    await learner.shutdown()


@in_virtual_time
async def test_nobody_joins_in_the_midst_of_an_update():
    world = World("a")
    learner = await trained(world, 1, num_ranks="1..2")
    learner.begin()
    await learner.learn(GROUPS[:3])
    world.nodes.update(b=True)
    await asyncio.sleep(20)
    await learner.learn(GROUPS[3:])
    assert (await learner.finish()).metrics == {"size": 1}
    assert (await learner.update(GROUPS)).metrics == {"size": 2}
    await learner.shutdown()


def test_nothing_is_done_again_for_a_rank_that_joins_though_copies_take_longer_than_updates(monkeypatch):
    monkeypatch.setattr(ScriptedHolder, "hold_s", 6.0)

    @in_virtual_time
    async def check():
        world = World("a", "b")
        learner = await trained(world, 2, num_ranks="1..3")
        world.nodes["c"] = True
        while learner.num_ranks < 3:
            await learner.update(GROUPS)
        assert learner.generation == 2
        assert "replay" not in world.kinds
        assert [rank.history for rank in world.serving()] == [UPDATE * (learner.version // 2)] * 3
        await learner.shutdown()

    check()


@in_virtual_time
async def test_fewer_than_the_fewest_are_waited_for_and_not_for_ever():
    world = World("a", "b")
    learner = await trained(world, 1, num_ranks=2, update_timeout_s=600)
    await asyncio.sleep(5)
    world.lose_node("b")
    loop = asyncio.get_running_loop()
    loop.call_later(100, world.nodes.update, {"c": True})
    started = now()
    await learner.update(GROUPS)
    assert 100 < now() - started < 120
    assert [rank.node for rank in world.serving()] == ["a", "c"]
    assert [detail for kind, _, detail in world.events if kind == "pending"] == ["waits for 1 more ranks"]
    await asyncio.sleep(5)
    world.lose_node("a")
    with pytest.raises(LearnerError, match=r"1 of at least 2 learner ranks are up after .*update_timeout_s=600 s"):
        await learner.update(GROUPS)
    await learner.shutdown()


@in_virtual_time
async def test_a_process_that_dies_before_it_is_up_is_started_again_with_pauses():
    world = World("a")
    world.num_failing_starts = 2
    learner = await trained(world, 1)
    assert world.serving()[0].history == UPDATE
    await learner.shutdown()
    world = World("a")
    world.num_failing_starts = 3
    with pytest.raises(LearnerError, match="learner rank 0 died 3 times before it was up"):
        await world.learner().start()


@in_virtual_time
async def test_the_learner_is_resized_by_hand_between_updates():
    world, sizes = World("a", "b", "c"), [Range(minimum=1, maximum=2)]
    learner = await trained(world, 1, num_ranks="1..2", desired=lambda: sizes[-1])
    assert learner.num_ranks == 2
    sizes.append(Range(minimum=3, maximum=3))
    await learner.update(GROUPS)
    await asyncio.sleep(20)
    await learner.update(GROUPS)
    assert learner.num_ranks == 3
    sizes.append(Range(minimum=1, maximum=1))
    await learner.update(GROUPS)
    assert learner.num_ranks == 1
    assert [rank.history for rank in world.serving()] == [UPDATE * 4]
    assert [view.state for view in learner.members()] == ["serving"]
    await learner.shutdown()


@in_virtual_time
async def test_a_spare_takes_the_place_of_a_lost_rank_at_once_and_is_replaced():
    world = World("a", "b", "c")
    learner = await trained(world, 1, num_ranks="1..2", num_spares=1)
    assert sorted(view.state for view in learner.members()) == ["serving", "serving", "spare"]
    world.on_call = once(lambda rank, called: rank.rank == 1 and called == "learn", lambda rank: rank.die())
    assert (await learner.update(GROUPS)).metrics == {"size": 2}
    assert (await learner.update(GROUPS)).metrics == {"size": 2}
    assert all(rank.history == UPDATE * 3 for rank in world.serving())
    await asyncio.sleep(20)
    await learner.update(GROUPS)
    assert learner.generation == 2, "formed anew once: there was no resize"
    assert sorted(view.state for view in learner.members()) == ["serving", "serving", "spare"]
    await learner.shutdown()


@in_virtual_time
async def test_receivers_connect_anew_after_ranks_have_changed():
    world = World("a", "b")
    learner = await trained(world, 1, num_ranks="1..2")
    await learner.open_weights(1)
    await learner.join_weights()
    assert (await learner.send_weights()).offer.version == 2
    generation = learner.generation
    world.ranks[0].die()
    with pytest.raises(WeightSyncError):
        await learner.send_weights()
    await learner.close_weights()
    assert learner.generation > generation
    with pytest.raises(WeightSyncError, match="connect anew"):
        await learner.send_weights()
    await learner.open_weights(1)
    assert (await learner.send_weights()).offer.version == 2, "the same weights, from another process"
    await learner.shutdown()
