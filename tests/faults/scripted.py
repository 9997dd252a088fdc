"""A rollout worker with the product's weight receiver and a scripted engine, for tests that run it as a Ray actor."""

import asyncio
import os

import numpy as np

from actors.errors import SampleError
from actors.fleet.worker import end_on_sigterm
from actors.weights.receiver import SyncState, WeightReceiver
from tests.fakes import make_episode, make_group

SIDE = 600
"""Of a picture in pixels: about a megabyte, so that it lies in the object store."""


def picture_of(row: int) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), row % 256, np.uint8)


class Target:
    """What an engine holds."""

    is_staged = True

    def __init__(self) -> None:
        self.delay_s = 0.0
        """Of the next version on its way here."""
        self.arrived = self.held = ()
        """Values of the buckets that have come, and of those in use."""

    async def connect_weights(self, link): ...
    async def receive_weights(self, offer):
        delay_s, self.delay_s = self.delay_s, 0.0
        await asyncio.sleep(delay_s)

    async def commit_weights(self, version, digests):
        self.held = self.arrived
        return 0.0

    async def disconnect_weights(self): ...


class ScriptedWorker:
    """Stands for `actors.fleet.worker.RolloutWorker`. Half of a group is right, so that it teaches something."""

    group_s = 1.0

    def __init__(self, **settings):
        end_on_sigterm()
        self._target = Target()
        self._receiver = WeightReceiver(self._target)
        self._is_wedged = False
        self._fails_next = False

    async def play(self, asked):
        assert self._receiver.takes_groups
        await asyncio.sleep(10_000 if self._is_wedged else self.group_s)
        if self._fails_next:
            self._fails_next = False
            raise SampleError("no such picture")
        episodes = [
            make_episode(
                version=self._receiver.version,
                answer="red" if index % 2 else "blue",
                index=index,
                sample=asked.ref.uid,
                attempt=asked.attempt,
            )
            for index in range(asked.num_episodes)
        ]
        return make_group(episodes, ref=asked.ref), picture_of(asked.ref.row)

    async def check_health(self):
        if self._is_wedged:
            await asyncio.sleep(10_000)

    async def wedge(self):
        self._is_wedged = True

    async def fail_next(self):
        self._fails_next = True

    async def delay_next_version(self, seconds):
        self._target.delay_s = seconds

    async def pid(self):
        return os.getpid()

    async def held(self):
        """The version that it serves, -1 if none, and the values of its buckets."""
        receiver = self._receiver
        return receiver.version if receiver.state is SyncState.CURRENT else -1, self._target.held

    async def connect_weights(self, link):
        await self._receiver.connect(link)
        return not link.settings.get("through_store")

    async def receive_weights(self, offer, *buckets):
        await self._receiver.receive(offer)
        self._target.arrived = tuple(int(bucket[0]) for bucket in buckets)

    async def commit_weights(self, version, digests):
        return await self._receiver.commit(version, digests)

    async def disconnect_weights(self):
        await self._receiver.disconnect()

    async def wait_for_ever(self):
        await asyncio.Event().wait()

    async def shutdown(self): ...


class ScriptedSpare(ScriptedWorker):
    """Stands for `actors.fleet.spare.SpareWorker`."""

    def __init__(self, **settings):
        end_on_sigterm()

    def stand_by(self): ...

    def begin(self, seed):
        super().__init__()


class QuickWorker(ScriptedWorker):
    """Plays groups of a fiftieth of a second."""

    group_s = 0.02


class RowReader:
    """Stands for the data set."""

    def read(self, picture):
        return picture_of(picture.ref.row)
