"""A version that is taken while the learner sends it: who starts when, and who is to blame."""

import asyncio

import pytest

from actors.errors import LearnerError, WeightSyncError
from cluster.sync_phase import GRACE_S
from tests.cluster.scripted_weights import DEAD, HANGS, TIMEOUT_S, UNWELL, Learner, Worker, make_channel, versions
from tests.virtual_time import in_virtual_time, now

SEND_S = 10.0


class SlowLearner(Learner):
    """Sends for ten seconds, and says when it has sent."""

    def __init__(self, **script):
        super().__init__(is_followed=True, **script)
        self.has_sent = asyncio.Event()

    async def send_weights(self):
        self.has_sent.clear()
        await asyncio.sleep(SEND_S)
        sent = await super().send_weights()
        self.has_sent.set()
        return sent


class Follower(Worker):
    """Has a version when the learner has sent it."""

    def __init__(self, name, learner, **script):
        super().__init__(name, **script)
        self.learner, self.started_at, self.offers = learner, [], []

    async def receive_weights(self, offer, read_bucket):
        self.started_at.append(now())
        self.offers.append(offer)
        await super().receive_weights(offer, read_bucket)
        await self.learner.has_sent.wait()


def nothing_is_left():
    return asyncio.all_tasks() == {asyncio.current_task()}


@in_virtual_time
async def test_who_reaches_the_learners_memory_starts_at_once_and_the_others_when_all_is_sent():
    learner = SlowLearner()
    near, far = Follower("near", learner), Follower("far", learner)
    far.reaches_learner = False
    channel, _ = make_channel(learner, near, far)
    learner.version = 6
    started = now()
    await channel.publish()
    assert versions(near, far) == [6, 6]
    assert far.started_at[0] - near.started_at[0] == SEND_S
    assert [offer.version for offer in (*near.offers, *far.offers)] == [6, 6]
    assert now() - started == SEND_S


@in_virtual_time
async def test_a_follower_that_dies_costs_itself_alone():
    learner = SlowLearner()
    dying, well = Follower("dying", learner, receive=[DEAD], disconnect=[DEAD]), Follower("well", learner)
    channel, pool = make_channel(learner, dying, well)
    await channel.publish()
    assert (pool.workers, well.version, dying.is_killed) == ([well], 0, True)


@in_virtual_time
async def test_a_follower_that_hangs_costs_itself_alone():
    learner = SlowLearner()
    hung, well = Follower("hung", learner, receive=[HANGS], disconnect=[HANGS]), Follower("well", learner)
    channel, pool = make_channel(learner, hung, well)
    started = now()
    await channel.publish()
    assert (pool.workers, well.version) == ([well], 0)
    assert now() - started == pytest.approx(2 * SEND_S + TIMEOUT_S + 2 * GRACE_S, abs=0.1)


@pytest.mark.parametrize("step", [UNWELL, HANGS], ids=["fails", "hangs"])
def test_a_sender_that_fails_is_blamed_and_not_those_who_wait_for_it(step):
    @in_virtual_time
    async def check():
        learner = SlowLearner(send=[step, step])
        workers = [Follower(name, learner) for name in "ab"]
        channel, pool = make_channel(learner, *workers)
        with pytest.raises(WeightSyncError, match=r"^the learner: "):
            await channel.publish()
        assert pool.workers == workers
        await asyncio.sleep(0)
        assert nothing_is_left()
        await channel.publish()
        assert versions(*workers) == [0, 0]

    check()


@in_virtual_time
async def test_followers_that_give_up_before_their_sender_does_are_not_blamed():
    """Their deadline is as long as the learner's, and started a little earlier."""
    learner = SlowLearner(send=[HANGS, HANGS])
    late = WeightSyncError("version 0 stopped at byte 4096 within weights.timeout_s=100")
    workers = [Follower(name, learner, receive=[late, late]) for name in "ab"]
    channel, pool = make_channel(learner, *workers)
    with pytest.raises(WeightSyncError, match=r"^the learner: no reply within weights\.timeout_s=100$"):
        await channel.publish()
    assert pool.workers == workers


@in_virtual_time
async def test_a_version_that_no_follower_can_take_is_the_learners_fault():
    learner = SlowLearner()
    workers = [Follower(name, learner, receive=[UNWELL] * 9) for name in "ab"]
    channel, pool = make_channel(learner, *workers)
    with pytest.raises(WeightSyncError, match=r"^the learner: nobody could take the version; a: NCCL error 5$"):
        await channel.publish()
    assert pool.workers == workers


@in_virtual_time
async def test_when_the_learner_dies_nobody_goes_on_waiting_for_it():
    learner = SlowLearner(send=[LearnerError("learner rank 0: ActorDiedError")])
    workers = [Follower(name, learner) for name in "ab"]
    channel, pool = make_channel(learner, *workers)
    with pytest.raises(LearnerError, match="ActorDiedError"):
        await channel.publish()
    await asyncio.sleep(0)
    assert nothing_is_left()
    assert pool.workers == workers
