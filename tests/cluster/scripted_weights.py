"""Workers and a learner that fail or hang in a phase of a weight sync, as scripted, and the channel between them."""

import asyncio

from actors.errors import RolloutError, WeightSyncError
from actors.fleet.pool import RolloutPool
from cluster.weights import WeightChannel
from tests.fakes import FakeWeightSource, FakeWorker

TIMEOUT_S = 100.0
DEAD, UNWELL = RolloutError("ActorDiedError: killed"), WeightSyncError("NCCL error 5")


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
