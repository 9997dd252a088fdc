"""Who is to blame for a failed sync, and that every engine is wholly old, wholly new or STALE after it."""

import contextlib

import pytest

from actors.errors import LearnerError, LostBucketError, RolloutError, RunError, WeightSyncError
from actors.fleet.pool import RolloutPool
from actors.weights.receiver import SyncState, WeightReceiver
from cluster.weights import WeightChannel
from tests.cluster.scripted_weights import DEAD, UNWELL, Learner, Worker, make_channel, versions
from tests.virtual_time import in_virtual_time

LOST = LostBucketError("ObjectLostError: all copies are gone")


@in_virtual_time
async def test_bytes_that_were_lost_cost_no_worker_and_are_sent_again():
    learner, a, b = Learner(), Worker("a", receive=[LOST]), Worker("b", receive=[LOST])
    channel, pool = make_channel(learner, a, b)
    await channel.publish()
    assert (versions(a, b), pool.num_workers, learner.calls.count("open")) == ([0, 0], 2, 2)


@in_virtual_time
async def test_a_sender_whose_bytes_are_lost_every_time_is_blamed_and_no_worker_is_dropped():
    workers = [Worker(name, receive=[LOST] * 9) for name in "abc"]
    channel, pool = make_channel(Learner(), *workers)
    with pytest.raises(WeightSyncError, match=r"^the learner: ObjectLostError: all copies are gone$"):
        await channel.publish()
    assert pool.num_workers == 3


@in_virtual_time
async def test_a_version_that_nobody_can_take_is_the_learners_fault():
    workers = [Worker(name, receive=[UNWELL] * 9) for name in "ab"]
    channel, pool = make_channel(Learner(), *workers)
    with pytest.raises(WeightSyncError, match=r"^the learner: nobody could take the version; a: NCCL error 5$"):
        await channel.publish()
    assert pool.num_workers == 2


@pytest.mark.parametrize("link", [{}, {"is_rendezvous": True}, {"is_followed": True}], ids=str)
@pytest.mark.parametrize("phase", ["connect", "receive", "commit"])
def test_a_sender_that_died_is_named_and_costs_no_worker(phase, link):
    """The workers fail first; when the learner is asked to leave, it is found dead."""

    @in_virtual_time
    async def check():
        died = LearnerError("learner rank 0: ActorDiedError")
        learner = Learner(**link, close=[died])
        workers = [
            Worker(name, **{phase: [WeightSyncError("weights in /proc/7/fd/3 cannot be read")]}) for name in "ab"
        ]
        channel, pool = make_channel(learner, *workers)
        with pytest.raises(LearnerError, match="rank 0: ActorDiedError"):
            await channel.publish()
        assert (pool.num_workers, [worker.is_killed for worker in workers]) == (2, [False, False])
        learner.script = {}
        learner.version = 5
        await channel.publish()
        assert versions(*workers) == [5, 5], "the next learner brings all of them to its version"

    check()


@in_virtual_time
async def test_a_dead_receiver_costs_itself_alone():
    learner, dead, well = Learner(), Worker("dead", receive=[DEAD], disconnect=[DEAD]), Worker("well")
    channel, pool = make_channel(learner, dead, well)
    await channel.publish()
    assert (pool.workers, well.version) == ([well], 0)


@in_virtual_time
async def test_all_connect_anew_when_the_learner_has_re_formed():
    learner, a = Learner(), Worker("a")
    channel, _ = make_channel(learner, a)
    await channel.publish()
    await channel.publish()
    assert a.calls.count("connect") == 1
    learner.generation = 1
    await channel.publish()
    assert a.calls.count("connect") == 2


@in_virtual_time
async def test_a_joiner_connects_alone_where_the_last_version_is_kept():
    learner, a, joiner = Learner(), Worker("a"), Worker("joiner")
    learner._keeps_last = True
    channel, pool = make_channel(learner, a)
    await channel.publish()
    channel.join(joiner)
    await channel.catch_up(joiner)
    assert (channel.confirmed(joiner), joiner.version) == (0, 0)
    channel.leave(joiner)
    pool.add(joiner)
    learner.version = 1
    await channel.publish()
    assert versions(a, joiner) == [1, 1]
    assert (a.calls.count("connect"), joiner.calls.count("connect"), learner.calls.count("open")) == (1, 1, 1)


@in_virtual_time
async def test_what_is_kept_is_not_taken_from_a_learner_that_has_re_formed():
    learner, a, joiner = Learner(), Worker("a"), Worker("joiner")
    learner._keeps_last = True
    channel, _ = make_channel(learner, a)
    await channel.publish()
    learner.generation = 1
    channel.join(joiner)
    assert not channel._has_kept()


@in_virtual_time
async def test_nothing_is_sent_by_a_driver_that_was_fenced_off():
    def fenced():
        raise RunError("another driver has taken this run over")

    learner, a = Learner(), Worker("a")
    pool = RolloutPool([a], max_groups_in_flight=4, group_timeout_s=5.0)
    channel = WeightChannel(learner, pool, timeout_s=1.0, before_publish=fenced)
    with pytest.raises(RunError, match="taken this run over"):
        await channel.publish()
    assert (learner.calls, a.calls) == ([], [])


@pytest.mark.parametrize("keeps_last", [False, True])
def test_a_fleet_that_refills_may_be_empty_at_a_publication(keeps_last):
    @in_virtual_time
    async def check():
        learner = Learner(is_rendezvous=not keeps_last)
        learner._keeps_last = keeps_last
        pool = RolloutPool(max_groups_in_flight=4, group_timeout_s=5.0, refills=True)
        channel = WeightChannel(learner, pool, timeout_s=1.0)
        learner.version = 3
        assert (await channel.publish()).version == 3
        joiner = Worker("joiner")
        channel.join(joiner)
        await channel.catch_up(joiner)
        assert (channel.version, joiner.version) == (3, 3)

    check()


class Target:
    """An engine that holds `version`, received beside it (staged) or in its place; fails where it is told to."""

    def __init__(self, *, is_staged, fails_at):
        self.is_staged, self.fails_at = is_staged, fails_at
        self.held, self.arrived = "old", None

    async def connect_weights(self, link): ...

    async def receive_weights(self, offer):
        if not self.is_staged:
            self.held = "mixed"
        if self.fails_at == "receive":
            raise WeightSyncError("the sender is gone")
        self.arrived = "new"

    async def commit_weights(self, version, digests):
        if self.fails_at == "digest":
            self.held = "mixed"
            raise WeightSyncError("other bytes than were sent")
        self.held = self.arrived
        return 0.0

    async def disconnect_weights(self):
        self.arrived = None


class Engine(Worker):
    """A worker over the real receiver: its state is what counts."""

    def __init__(self, name, **target):
        super().__init__(name)
        self.target = Target(**target)
        self.receiver = WeightReceiver(self.target)
        self.receiver.accept_loaded_weights()

    async def connect_weights(self, link):
        await self.receiver.connect(link)

    async def receive_weights(self, offer, read_bucket):
        await self.receiver.receive(offer)

    async def commit_weights(self, version, digests):
        return await self.receiver.commit(version, digests)

    async def disconnect_weights(self):
        await self.receiver.disconnect()


@pytest.mark.parametrize("is_staged", [True, False])
@pytest.mark.parametrize("fails_at", ["receive", "digest", None])
@pytest.mark.parametrize("learner_fails", [None, "release", "close"])
def test_after_any_failure_every_engine_is_wholly_old_wholly_new_or_stale(is_staged, fails_at, learner_fails):
    @in_virtual_time
    async def check():
        script = {learner_fails: [LearnerError("learner rank 0 died")]} if learner_fails else {}
        learner = Learner(**script)
        learner.version = 7
        engines = [Engine("a", is_staged=is_staged, fails_at=fails_at), Engine("b", is_staged=is_staged, fails_at=None)]
        channel, _ = make_channel(learner, *engines)
        with contextlib.suppress(LearnerError, WeightSyncError, RolloutError):
            await channel.publish()
        for engine in engines:
            if engine.receiver.state is SyncState.CURRENT:
                assert (engine.target.held, engine.receiver.version) in [("old", 0), ("new", 7)]
            else:  # what is whole but not committed holds its groups back until the next version is
                assert not engine.receiver.takes_groups or engine.target.arrived in ("new", None)
                with pytest.raises(WeightSyncError, match="was received"):
                    await engine.receiver.commit(8, ())

    check()
