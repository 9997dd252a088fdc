"""A fleet whose workers start, play and die as they are told, with a real pool and a real weight channel."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from actors.errors import RolloutError
from actors.fleet.membership import Policy
from actors.fleet.pool import RolloutPool
from cluster.runtime.members import Members
from cluster.weights import WeightChannel
from configs.ranges import Range
from tests.fakes import FakeWeightSource, FakeWorker

POLICY = Policy(
    start_timeout_s=100.0,
    progress_timeout_s=20.0,
    drain_timeout_s=30.0,
    max_restarts=2,
    restart_window_s=600.0,
    waits_when_none_left=True,
    wait_timeout_s=300.0,
)


class Worker(FakeWorker):
    """Starts after a while, dies when told to, and says under which version it played."""

    def __init__(self, slot, attempt, *, ready_s=1.0, broken=None, seconds=5.0):
        super().__init__(f"rollout worker {slot}", seconds=seconds)
        self.slot, self.attempt, self.actor_id = slot, attempt, f"actor {slot}.{attempt}"
        self.ready_s, self.broken, self.is_shut_down = ready_s, broken, False
        self.played_under = []
        self.requests = []
        self.receive_s = 0.0
        self.failures = []
        self._death = asyncio.get_running_loop().create_future()

    async def ready(self):
        await asyncio.wait([self._death], timeout=self.ready_s)
        if self.broken is not None:
            raise self.broken
        if self._death.done():
            raise RolloutError(self._death.result())

    async def ended(self):
        return await asyncio.shield(self._death)

    def die(self, cause="ActorDiedError: killed"):
        if not self._death.done():
            self._death.set_result(cause)

    def kill(self):
        super().kill()
        self.die("killed")

    async def shutdown(self):
        self.is_shut_down = True

    async def play(self, asked):
        self.requests.append(asked)
        playing = asyncio.ensure_future(super().play(asked))
        await asyncio.wait([playing, self._death], return_when=asyncio.FIRST_COMPLETED)
        if not playing.done():
            playing.cancel()
            raise RolloutError(self._death.result())
        self.played_under.append(self.version)
        return playing.result()

    async def receive_weights(self, offer, read_bucket):
        await asyncio.sleep(self.receive_s)
        if self.failures:
            raise self.failures.pop(0)
        await super().receive_weights(offer, read_bucket)


@dataclass
class Cluster:
    nodes: dict = field(default_factory=dict)
    draining: dict = field(default_factory=dict)


class Fleet:
    """Everything around the members."""

    def __init__(self, desired, *, policy=POLICY, keeps_last=True, cluster=None, settings=None):
        self.desired = Range(minimum=desired[0], maximum=desired[1])
        self.learner = FakeWeightSource(keeps_last=keeps_last)
        self.pool = RolloutPool(max_groups_in_flight=2, group_timeout_s=1000.0)
        self.channel = WeightChannel(self.learner, self.pool, timeout_s=50.0)
        self.events, self.workers, self.cluster = [], [], cluster
        self.settings = settings or (lambda slot, attempt: {})
        self.members = Members(
            self.pool,
            self.channel,
            self.start,
            policy,
            desired=lambda: self.desired,
            emit=self.events.append,
            look=None if cluster is None else self.look,
        )

    def start(self, slot, attempt):
        self.workers.append(Worker(slot, attempt, **self.settings(slot, attempt)))
        return self.workers[-1]

    async def look(self, actor_ids):
        return self.cluster

    async def publish(self):
        published = await self.channel.publish()
        self.learner.version += 1
        return published

    def states(self):
        return [(view.name[-1], view.state, view.version) for view in self.members.members()]

    def kinds(self):
        return [event.kind for event in self.events]


@asynccontextmanager
async def fleet(*desired, is_published=True, **settings):
    found = Fleet(desired, **settings)
    try:
        await found.members.up()
        if is_published:
            await found.publish()
            await asyncio.sleep(0.1)
        yield found
    finally:
        await found.members.close()
