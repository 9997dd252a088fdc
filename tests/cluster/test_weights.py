"""Publishing weights: who fails costs itself, and everybody else gets the version."""

import asyncio
import logging

import pytest

from actors.errors import LearnerError, RolloutError, WeightSyncError
from actors.fleet.pool import RolloutPool
from cluster.sync_phase import GRACE_S
from cluster.weights import Publication, WeightChannel
from tests.fakes import FakeWeightSource, FakeWorker
from tests.virtual_time import in_virtual_time, now

TIMEOUT_S = 100.0
DEAD, UNWELL = RolloutError("ActorDiedError: killed"), WeightSyncError("NCCL error 5")
PHASES = ["connect", "receive", "commit"]


class Scripted:
    """Fails or hangs where its script says: {phase: [one entry per call]}; None is well, HANGS never answers."""

    script: dict
    calls: list

    async def act(self, phase):
        self.calls.append(phase)
        steps = self.script.get(phase, [])
        step = steps.pop(0) if steps else None
        if step is HANGS:
            await asyncio.Event().wait()
        if step is not None:
            raise step


HANGS = object()


class Worker(Scripted, FakeWorker):
    def __init__(self, name, *, num_receivers=1, **script):
        super().__init__(name)
        self.num_receivers = num_receivers
        self.script, self.calls, self.links = script, [], []
        self.pause_s = 0.0

    async def connect_weights(self, link):
        self.links.append(link)
        await self.act("connect")
        await super().connect_weights(link)

    async def receive_weights(self, offer, read_bucket):
        await self.act("receive")
        await super().receive_weights(offer, read_bucket)

    async def commit_weights(self, version, digests):
        await self.act("commit")
        assert digests == (version,), "those of the learner"
        await super().commit_weights(version, digests)
        return self.pause_s

    async def disconnect_weights(self):
        await self.act("disconnect")
        await super().disconnect_weights()


class Learner(Scripted, FakeWeightSource):
    def __init__(self, *, is_rendezvous=False, is_followed=False, **script):
        super().__init__(is_rendezvous=is_rendezvous, is_followed=is_followed)
        self.script, self.calls = script, []

    async def open_weights(self, num_receivers):
        await self.act("open")
        return await super().open_weights(num_receivers)

    async def join_weights(self):
        await self.act("join")
        await super().join_weights()

    async def send_weights(self):
        await self.act("send")
        return await super().send_weights()

    async def release_weights(self):
        await self.act("release")
        await super().release_weights()

    async def close_weights(self):
        await self.act("close")
        await super().close_weights()


def make_channel(learner, *workers):
    pool = RolloutPool(workers, max_groups_in_flight=4, group_timeout_s=5.0)
    return WeightChannel(learner, pool, timeout_s=TIMEOUT_S), pool


def versions(*workers):
    return [worker.version for worker in workers]


@in_virtual_time
async def test_a_version_reaches_every_worker():
    learner, a, b = Learner(), Worker("a"), Worker("b")
    channel, _ = make_channel(learner, a, b)
    a.pause_s, b.pause_s = 0.1, 0.3
    for version in range(3):
        learner.version = version
        published = await channel.publish()
        assert versions(a, b) == [version, version]
        assert isinstance(published, Publication)
        assert (published.version, published.pause_s) == (version, 0.3), "the longest pause"
    assert a.calls == b.calls == ["connect", *["receive", "commit"] * 3], "connected once"
    assert learner.calls == ["open", "join", *["send", "release"] * 3]


@in_virtual_time
async def test_each_worker_has_its_own_places_among_the_receivers():
    a, b, c = Worker("a", num_receivers=2), Worker("b", num_receivers=1), Worker("c", num_receivers=4)
    channel, _ = make_channel(Learner(), a, b, c)
    await channel.publish()
    assert [worker.links[0].settings for worker in (a, b, c)] == [
        {"num_receivers": 7, "rank_offset": offset} for offset in (1, 3, 4)
    ]


@in_virtual_time
async def test_the_rest_is_connected_anew_when_a_member_has_gone():
    learner, a, b = Learner(), Worker("a"), Worker("b")
    channel, pool = make_channel(learner, a, b)
    await channel.publish()
    pool.drop(a, "its engine died at a group")
    learner.version = 1
    await channel.publish()
    assert b.calls == ["connect", "receive", "commit"] * 2
    assert b.links[-1].settings == {"num_receivers": 1, "rank_offset": 1}
    assert (b.version, a.version) == (1, 0)


@pytest.mark.parametrize("is_rendezvous", [False, True])
@pytest.mark.parametrize("phase", PHASES)
def test_a_worker_that_dies_is_dropped_and_the_others_get_the_version(phase, is_rendezvous, caplog):
    @in_virtual_time
    async def check():
        learner = Learner(is_rendezvous=is_rendezvous)
        dying, a, b = Worker("dying", **{phase: [DEAD], "disconnect": [DEAD]}), Worker("a"), Worker("b")
        channel, pool = make_channel(learner, dying, a, b)
        learner.version = 4
        started = now()
        await channel.publish()
        assert now() - started < 1, "nobody waits for a deadline"
        assert versions(a, b) == [4, 4]
        assert (pool.workers, dying.is_killed, a.is_killed, b.is_killed) == ([a, b], True, False, False)
        assert a.links[-1].settings["num_receivers"] == 2

    with caplog.at_level(logging.WARNING):
        check()
    assert caplog.messages[-1] == (
        "dying is dropped: dying: ActorDiedError: killed; asked to leave: ActorDiedError: killed"
    )


@pytest.mark.parametrize("phase", PHASES)
def test_a_worker_that_fails_once_is_tried_again_and_stays(phase):
    @in_virtual_time
    async def check():
        learner, unwell, well = Learner(), Worker("unwell", **{phase: [UNWELL]}), Worker("well")
        channel, pool = make_channel(learner, unwell, well)
        learner.version = 4
        await channel.publish()
        assert versions(unwell, well) == [4, 4]
        assert pool.num_workers == 2
        assert [worker.calls.count("disconnect") for worker in (unwell, well)] == [1, 1]
        assert learner.calls.count("close") == 1

    check()


@pytest.mark.parametrize("phase", PHASES)
def test_a_worker_that_fails_twice_is_dropped(phase, caplog):
    @in_virtual_time
    async def check():
        learner, unwell, well = Learner(), Worker("unwell", **{phase: [UNWELL, UNWELL]}), Worker("well")
        channel, pool = make_channel(learner, unwell, well)
        await channel.publish()
        assert (pool.workers, well.version, unwell.is_killed) == ([well], 0, True)

    with caplog.at_level(logging.WARNING):
        check()
    assert caplog.messages[-1] == "unwell is dropped: unwell: NCCL error 5"


@in_virtual_time
async def test_failures_of_different_phases_count_together_and_those_of_earlier_versions_do_not():
    learner, unwell, well = Learner(), Worker("unwell", receive=[UNWELL], commit=[None, UNWELL]), Worker("well")
    channel, pool = make_channel(learner, unwell, well)
    await channel.publish()
    await channel.publish()
    assert pool.num_workers == 2, "once in each of two versions"
    unwell.script = {"receive": [UNWELL], "commit": [UNWELL]}
    await channel.publish()
    assert pool.workers == [well]


@in_virtual_time
async def test_two_workers_that_fail_in_turn_cost_themselves_alone():
    learner, well = Learner(), Worker("well")
    unwell = [Worker(name, receive=[UNWELL] * 10) for name in ("a", "b")]
    channel, pool = make_channel(learner, *unwell, well)
    await channel.publish()
    assert (pool.workers, well.version) == ([well], 0)


@pytest.mark.parametrize("phase", PHASES)
def test_a_worker_that_hangs_is_dropped_when_it_does_not_even_leave(phase, caplog):
    @in_virtual_time
    async def check():
        learner, hung, well = Learner(), Worker("hung", **{phase: [HANGS], "disconnect": [HANGS]}), Worker("well")
        channel, pool = make_channel(learner, hung, well)
        started = now()
        await channel.publish()
        assert now() - started == pytest.approx(TIMEOUT_S + 2 * GRACE_S, abs=0.1)
        assert (pool.workers, well.version, hung.is_killed) == ([well], 0, True)

    with caplog.at_level(logging.WARNING):
        check()
    assert caplog.messages[-1] == (
        "hung is dropped: hung: no reply within weights.timeout_s=100; asked to leave: no answer"
    )


@in_virtual_time
async def test_all_who_do_not_answer_are_dropped_at_once_and_not_one_by_one():
    learner, well = Learner(), Worker("well")
    hung = [Worker(f"hung {number}", receive=[HANGS], disconnect=[HANGS]) for number in range(5)]
    channel, pool = make_channel(learner, *hung, well)
    started = now()
    await channel.publish()
    assert now() - started == pytest.approx(TIMEOUT_S + 2 * GRACE_S, abs=0.1)
    assert pool.workers == [well]


@in_virtual_time
async def test_a_worker_that_waits_for_somebody_else_in_vain_stays():
    """In a collective all wait for the one that is gone."""
    learner = Learner(is_rendezvous=True, send=[HANGS])
    dying, waiting = Worker("dying", receive=[DEAD], disconnect=[DEAD]), Worker("waiting", receive=[HANGS])
    channel, pool = make_channel(learner, dying, waiting)
    await channel.publish()
    assert (pool.workers, waiting.version, waiting.calls.count("disconnect")) == ([waiting], 0, 1)


@pytest.mark.parametrize("phase", ["open", "join", "send", "release"])
def test_a_learner_that_fails_once_is_tried_again(phase):
    @in_virtual_time
    async def check():
        learner, a, b = Learner(**{phase: [UNWELL]}), Worker("a"), Worker("b")
        channel, pool = make_channel(learner, a, b)
        learner.version = 2
        await channel.publish()
        assert (versions(a, b), pool.num_workers) == ([2, 2], 2)

    check()


@pytest.mark.parametrize("step", [UNWELL, HANGS], ids=["fails", "hangs"])
@pytest.mark.parametrize("phase", ["open", "join", "send", "release"])
def test_a_learner_that_fails_twice_ends_the_run(phase, step):
    @in_virtual_time
    async def check():
        learner, a = Learner(**{phase: [step, step]}), Worker("a")
        channel, pool = make_channel(learner, a)
        reason = r"NCCL error 5" if step is UNWELL else r"no reply within weights\.timeout_s=100"
        with pytest.raises(WeightSyncError, match=f"^the learner: {reason}$"):
            await channel.publish()
        assert pool.workers == [a], "it is not the worker's fault"

    check()


@pytest.mark.parametrize("phase", ["open", "join", "send", "release", "close"])
def test_a_learner_that_died_ends_the_run_at_once(phase):
    @in_virtual_time
    async def check():
        died = LearnerError("learner rank 0: ActorDiedError")
        channel, _ = make_channel(Learner(**{phase: [died]}), Worker("a", receive=[UNWELL]))
        with pytest.raises(LearnerError, match="rank 0: ActorDiedError"):
            await channel.publish()

    check()


@in_virtual_time
async def test_when_no_worker_is_left_the_run_ends():
    dying = [Worker(name, commit=[DEAD], disconnect=[DEAD]) for name in ("a", "b")]
    channel, pool = make_channel(Learner(), *dying)
    with pytest.raises(WeightSyncError, match="no rollout worker is left to take the weights"):
        await channel.publish()
    assert pool.workers == []


@pytest.mark.parametrize("bug", [KeyError("bug"), TypeError("bug"), AssertionError("bug")], ids=repr)
@pytest.mark.parametrize("phase", [*PHASES, "disconnect"])
def test_a_bug_in_a_worker_is_not_swallowed(phase, bug):
    @in_virtual_time
    async def check():
        failing = {"receive": [UNWELL]} if phase == "disconnect" else {}
        channel, pool = make_channel(Learner(), Worker("a", **{phase: [bug], **failing}), Worker("b"))
        with pytest.raises(type(bug)):
            await channel.publish()
        assert pool.num_workers == 2

    check()


@pytest.mark.parametrize("phase", ["open", "join", "send", "release", "close"])
def test_a_bug_in_the_learner_is_not_swallowed(phase):
    @in_virtual_time
    async def check():
        channel, _ = make_channel(Learner(**{phase: [KeyError("bug")]}), Worker("a", receive=[UNWELL]))
        with pytest.raises(KeyError):
            await channel.publish()

    check()


class Meeting:
    """Everybody waits for everybody, as in a collective: whoever is asked alone waits for ever."""

    def __init__(self, num_members):
        self.barrier = asyncio.Barrier(num_members)

    def bind(self, member, *methods):
        for method in methods:
            setattr(member, method, self._meeting(getattr(member, method)))
        return member

    def _meeting(self, call):
        async def meet(*arguments):
            await self.barrier.wait()
            return await call(*arguments)

        return meet


@in_virtual_time
async def test_where_sending_and_receiving_meet_both_are_asked_at_the_same_time():
    meeting = Meeting(3)
    learner = meeting.bind(Learner(is_rendezvous=True), "join_weights", "send_weights")
    workers = [meeting.bind(Worker(name), "connect_weights", "receive_weights") for name in "ab"]
    channel, _ = make_channel(learner, *workers)
    learner.version = 6
    started = now()
    await channel.publish()
    assert versions(*workers) == [6, 6]
    assert now() == started


@in_virtual_time
async def test_where_they_do_not_meet_nothing_is_received_before_it_is_sent():
    learner, log = Learner(), []

    class Slow(Worker):
        async def receive_weights(self, offer, read_bucket):
            assert "sent" in log
            assert read_bucket(3) == "bucket 3"
            await super().receive_weights(offer, read_bucket)

    send = learner.send_weights

    async def slowly():
        await asyncio.sleep(10)
        sent = await send()
        log.append("sent")
        return sent

    learner.send_weights = slowly
    worker = Slow("a")
    channel, _ = make_channel(learner, worker)
    await channel.publish()
    assert worker.version == 0


@in_virtual_time
async def test_nobody_commits_before_everybody_has_received():
    received = []

    class Noting(Worker):
        async def receive_weights(self, offer, read_bucket):
            await asyncio.sleep(5 if self.name == "slow" else 0)
            received.append(self.name)
            await super().receive_weights(offer, read_bucket)

        async def commit_weights(self, version, digests):
            assert sorted(received) == ["fast", "slow"]
            return await super().commit_weights(version, digests)

    channel, _ = make_channel(Learner(), Noting("fast"), Noting("slow"))
    await channel.publish()


@in_virtual_time
async def test_after_a_failed_publication_nothing_goes_on_in_the_background():
    learner = Learner(is_rendezvous=True, send=[UNWELL, UNWELL])
    channel, _ = make_channel(learner, Worker("a", receive=[HANGS, HANGS]), Worker("b", receive=[HANGS, HANGS]))
    with pytest.raises(WeightSyncError):
        await channel.publish()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
