"""Rule E: an engine is wholly on one verified version, or STALE."""

import asyncio

import pytest

from actors.errors import RolloutError, WeightSyncError
from actors.weights.layout import TensorSpec, WeightLink, WeightOffer, lay_out
from actors.weights.receiver import SyncState, WeightReceiver

LINK = WeightLink(
    transport="shared_memory",
    is_rendezvous=False,
    layout=lay_out([TensorSpec(name="w", dtype="float32", shape=(2, 3))], bucket_bytes=4096),
    settings={},
    timeout_s=1.0,
)
DIGESTS = (1, 2)


def offer(version):
    return WeightOffer(version=version, num_buckets=2, delivery={"file": str(version)})


class FakeTarget:
    """An engine: fails once where it is told to, and waits where there is something to wait for."""

    def __init__(self, *, is_staged=True):
        self.is_staged = is_staged
        self.calls = []
        self.failure = None
        self.waits_for = None

    async def connect_weights(self, link):
        await self._answer("connect")

    async def receive_weights(self, offer):
        await self._answer(f"receive {offer.version}")

    async def commit_weights(self, version, digests):
        await self._answer(f"commit {version} {digests}")
        return 0.25

    async def disconnect_weights(self):
        self.calls.append("disconnect")
        if self.waits_for is not None:
            self.waits_for.set()

    async def _answer(self, call):
        self.calls.append(call)
        if self.waits_for is not None:
            await self.waits_for.wait()
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure


async def serving(version, *, is_staged=True):
    """A receiver on this version, and its engine."""
    target = FakeTarget(is_staged=is_staged)
    receiver = WeightReceiver(target)
    await receiver.connect(LINK)
    await receiver.receive(offer(version))
    await receiver.commit(version, DIGESTS)
    return receiver, target


def state_of(receiver):
    return receiver.state, receiver.version


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


@pytest.mark.parametrize("is_staged", [True, False])
async def test_a_version_is_served_from_its_commit_on(is_staged):
    target = FakeTarget(is_staged=is_staged)
    receiver = WeightReceiver(target)
    assert receiver.state is SyncState.STALE
    await receiver.connect(LINK)
    await receiver.receive(offer(3))
    assert receiver.state is SyncState.STALE
    assert await receiver.commit(3, DIGESTS) == 0.25
    assert state_of(receiver) == (SyncState.CURRENT, 3)
    assert target.calls == ["connect", "receive 3", f"commit 3 {DIGESTS}"]


async def test_weights_that_were_loaded_from_disk_are_version_0():
    receiver = WeightReceiver(FakeTarget())
    receiver.accept_loaded_weights()
    assert state_of(receiver) == (SyncState.CURRENT, 0)


async def test_an_engine_that_has_given_its_weights_up_is_stale_until_the_next_version():
    receiver, _ = await serving(1)
    receiver.invalidate()
    assert receiver.state is SyncState.STALE
    await receiver.receive(offer(1))
    assert receiver.state is SyncState.STALE
    await receiver.commit(1, DIGESTS)
    assert state_of(receiver) == (SyncState.CURRENT, 1)


@pytest.mark.parametrize(("is_staged", "state"), [(True, SyncState.CURRENT), (False, SyncState.STALE)])
async def test_while_a_version_arrives_the_old_one_is_served_only_if_it_stays_whole(is_staged, state):
    receiver, target = await serving(1, is_staged=is_staged)
    target.waits_for = asyncio.Event()
    receiving = asyncio.create_task(receiver.receive(offer(2)))
    await until(lambda: target.calls[-1] == "receive 2")
    assert state_of(receiver) == (state, 1)
    target.waits_for.set()
    await receiving
    assert state_of(receiver) == (state, 1)


@pytest.mark.parametrize("is_staged", [True, False])
async def test_groups_are_taken_while_a_version_arrives_and_is_committed(is_staged):
    """Look-ahead: an engine that is not staged holds their turns back meanwhile."""
    receiver, target = await serving(1, is_staged=is_staged)
    for call, name in ((receiver.receive(offer(2)), "receive"), (receiver.commit(2, DIGESTS), "commit")):
        target.waits_for = asyncio.Event()
        under_way = asyncio.create_task(call)
        await until(lambda name=name: target.calls[-1].startswith(name))
        assert receiver.takes_groups
        target.waits_for.set()
        await under_way
        assert receiver.takes_groups


@pytest.mark.parametrize("method", ["receive", "commit"])
async def test_no_group_is_taken_once_a_version_that_replaces_another_has_failed(method):
    receiver, target = await serving(1, is_staged=False)
    if method == "commit":
        await receiver.receive(offer(2))
    target.failure = WeightSyncError("late")
    with pytest.raises(WeightSyncError):
        await (receiver.receive(offer(2)) if method == "receive" else receiver.commit(2, DIGESTS))
    assert not receiver.takes_groups
    await receiver.receive(offer(2))
    assert not receiver.takes_groups
    await receiver.commit(2, DIGESTS)
    assert receiver.takes_groups


@pytest.mark.parametrize("failure", [WeightSyncError("late"), RolloutError("dead"), KeyError("a bug")], ids=repr)
@pytest.mark.parametrize(("is_staged", "state"), [(True, SyncState.CURRENT), (False, SyncState.STALE)])
async def test_a_version_that_does_not_arrive_cannot_be_committed(is_staged, state, failure):
    receiver, target = await serving(1, is_staged=is_staged)
    target.failure = failure
    with pytest.raises(type(failure)):
        await receiver.receive(offer(2))
    assert state_of(receiver) == (state, 1)
    with pytest.raises(WeightSyncError, match="commit of version 2, but version None was received"):
        await receiver.commit(2, DIGESTS)
    assert state_of(receiver) == (state, 1)


@pytest.mark.parametrize("failure", [WeightSyncError("bucket 1"), RolloutError("dead"), KeyError("a bug")], ids=repr)
async def test_a_commit_that_fails_leaves_the_engine_stale_until_another_one_succeeds(failure):
    receiver, target = await serving(1)
    await receiver.receive(offer(2))
    target.failure = failure
    with pytest.raises(type(failure)):
        await receiver.commit(2, DIGESTS)
    assert receiver.state is SyncState.STALE
    with pytest.raises(WeightSyncError, match="version None was received"):
        await receiver.commit(2, DIGESTS)
    await receiver.receive(offer(2))
    await receiver.commit(2, DIGESTS)
    assert state_of(receiver) == (SyncState.CURRENT, 2)


async def test_a_commit_that_is_given_up_leaves_the_engine_stale():
    receiver, target = await serving(1)
    await receiver.receive(offer(2))
    target.waits_for = asyncio.Event()
    commit = asyncio.create_task(receiver.commit(2, DIGESTS))
    await until(lambda: target.calls[-1].startswith("commit 2"))
    commit.cancel()
    with pytest.raises(asyncio.CancelledError):
        await commit
    assert receiver.state is SyncState.STALE


async def test_only_the_version_that_was_received_can_be_committed():
    receiver, target = await serving(1)
    await receiver.receive(offer(3))
    with pytest.raises(WeightSyncError, match="commit of version 2, but version 3 was received"):
        await receiver.commit(2, DIGESTS)
    assert "commit 2" not in " ".join(target.calls)
    await receiver.commit(3, DIGESTS)
    assert state_of(receiver) == (SyncState.CURRENT, 3)


async def test_a_commit_whose_answer_was_missed_can_be_asked_for_again():
    receiver, target = await serving(3)
    assert [await receiver.commit(3, DIGESTS) for _ in range(3)] == [0.0] * 3
    assert target.calls.count(f"commit 3 {DIGESTS}") == 1
    await receiver.receive(offer(4))
    with pytest.raises(WeightSyncError, match="commit of version 3, but version 4 was received"):
        await receiver.commit(3, DIGESTS)


async def test_a_version_that_is_sent_again_is_written_again():
    receiver, target = await serving(3)
    await receiver.receive(offer(3))
    assert await receiver.commit(3, DIGESTS) == 0.25
    assert target.calls.count(f"commit 3 {DIGESTS}") == 2


@pytest.mark.parametrize("leave", [lambda receiver: receiver.disconnect(), lambda receiver: receiver.connect(LINK)])
async def test_what_was_received_from_an_earlier_sender_is_not_committed(leave):
    receiver, _ = await serving(1)
    await receiver.receive(offer(2))
    await leave(receiver)
    with pytest.raises(WeightSyncError, match="version None was received"):
        await receiver.commit(2, DIGESTS)
    assert state_of(receiver) == (SyncState.CURRENT, 1)


async def test_groups_are_taken_while_a_commit_waits_for_turns_in_flight():
    """Look-ahead: with turns in flight a commit takes a while, and nothing is refused meanwhile."""
    receiver, target = await serving(1)
    await receiver.receive(offer(2))
    target.waits_for = asyncio.Event()
    commit = asyncio.create_task(receiver.commit(2, DIGESTS))
    await until(lambda: target.calls[-1].startswith("commit 2"))
    assert state_of(receiver) == (SyncState.CURRENT, 1)
    target.waits_for.set()
    await commit
    assert state_of(receiver) == (SyncState.CURRENT, 2)


async def test_a_caller_that_gave_up_and_asks_anew_waits_for_its_first_call():
    """Otherwise a second commit would not wait for the turns that the first one waits for."""
    receiver, target = await serving(1)
    await receiver.receive(offer(2))
    target.waits_for = asyncio.Event()
    first = asyncio.create_task(receiver.commit(2, DIGESTS))
    await until(lambda: target.calls[-1].startswith("commit 2"))
    anew = asyncio.create_task(receiver.connect(LINK))
    for _ in range(10):
        await asyncio.sleep(0)
    assert target.calls[-1].startswith("commit 2"), "nothing was asked of the engine meanwhile"
    target.waits_for.set()
    await asyncio.gather(first, anew)
    assert target.calls[-1] == "connect"
    assert state_of(receiver) == (SyncState.CURRENT, 2)


async def test_leaving_waits_for_nothing_and_ends_what_waits_for_the_learner():
    receiver, target = await serving(1)
    target.waits_for = asyncio.Event()
    receiving = asyncio.create_task(receiver.receive(offer(2)))
    await until(lambda: target.calls[-1] == "receive 2")
    target.failure = WeightSyncError("left the learner")
    async with asyncio.timeout(1):
        await receiver.disconnect()
        with pytest.raises(WeightSyncError, match="left the learner"):
            await receiving
    assert state_of(receiver) == (SyncState.CURRENT, 1)
