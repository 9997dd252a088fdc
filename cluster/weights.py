"""The way of the weights from the learner to the rollout workers, seen from the driver.

The driver moves no bytes: it tells both ends when to connect, send, receive and commit (rule E of the reliability
rules), and sees to it that a member that fails costs itself and not the run.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from actors.errors import RolloutError, WeightSyncError
from actors.fleet.pool import RolloutPool, Worker
from actors.weights.layout import SentWeights, WeightLink, WeightOffer
from cluster.staleness import PublishedVersions
from learner.group import LearnerGroup

T = TypeVar("T")
logger = logging.getLogger(__name__)

MAX_FAILURES = 2
"""Times that one member may fail within a publication before it is dropped, or the learner before the run ends."""
GRACE_S = 5.0
"""A member that keeps its own deadline of `weights.timeout_s` reports within this time."""
LEARNER = "the learner"


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What one publication took."""

    version: int
    seconds: float
    """From the call until every worker serves the version."""
    transfer_s: float
    """Of it, until the version had arrived everywhere."""
    pause_s: float
    """Longest time for which a worker could generate nothing."""


class _PhaseFailed(Exception):
    """One participant failed; the others were not waited for."""

    def __init__(self, who: str, cause: BaseException) -> None:
        super().__init__(f"{who}: {cause}")
        self.who = who


class WeightChannel:
    """Publishes the learner's weights to all rollout workers."""

    def __init__(
        self,
        learner: LearnerGroup,
        rollouts: RolloutPool,
        *,
        timeout_s: float,
        before_publish: Callable[[], None] = lambda: None,
    ) -> None:
        self._before_publish = before_publish
        self.published = PublishedVersions()
        self._learner = learner
        self._rollouts = rollouts
        self._timeout_s = timeout_s
        self._link: WeightLink | None = None
        self._connected: list[Worker] = []

    async def publish(self) -> Publication:
        """Bring every rollout worker to the learner's weights, under version = optimizer step.

        Workers that fail or time out are dropped and killed; the others are connected anew if they have to be.

        Raises:
            WeightSyncError: no worker has the version, or the learner cannot send it.
            LearnerError: a rank died.
        """
        self._before_publish()
        started = time.monotonic()
        self.published.add(self._learner.version)
        failures: Counter[str] = Counter()
        while True:
            try:
                publication = await self._attempt(started)
                await _together(self._timeout_s, {LEARNER: self._learner.release_weights()})
            except _PhaseFailed as failure:
                failures[failure.who] += 1
                logger.warning("publishing weights failed and is tried again: %s", failure)
                if failures[LEARNER] >= MAX_FAILURES:
                    raise WeightSyncError(str(failure)) from failure.__cause__
                await self._disconnect(failure, is_last=failures[failure.who] >= MAX_FAILURES)
            else:
                return publication

    async def _attempt(self, started: float) -> Publication:
        """Connect if the members have changed, transfer, commit."""
        workers = self._rollouts.workers
        if not workers:
            raise WeightSyncError("no rollout worker is left to take the weights")
        link = self._link if self._link is not None and workers == self._connected else await self._connect(workers)
        connected = time.monotonic()
        sent = await self._transfer(link, workers)
        transferred = time.monotonic()
        version, digests = sent.offer.version, sent.digests
        pauses = await _together(
            self._timeout_s, {worker.name: worker.commit_weights(version, digests) for worker in workers}
        )
        return Publication(
            version=version,
            seconds=time.monotonic() - started,
            transfer_s=transferred - connected,
            pause_s=max(pauses.values()),
        )

    async def _connect(self, workers: list[Worker]) -> WeightLink:
        num_receivers = sum(worker.num_receivers for worker in workers)
        link = (await _together(self._timeout_s, {LEARNER: self._learner.open_weights(num_receivers)}))[LEARNER]
        joining: dict[str, Coroutine[Any, Any, Any]] = {LEARNER: self._learner.join_weights()}
        offset = 1  # the learner is the first of all
        for worker in workers:
            joining[worker.name] = worker.connect_weights(
                replace(link, settings={**link.settings, "rank_offset": offset})
            )
            offset += worker.num_receivers
        await _together(self._timeout_s, joining)
        self._link, self._connected = link, workers
        return link

    async def _transfer(self, link: WeightLink, workers: list[Worker]) -> SentWeights:
        sending = {LEARNER: self._learner.send_weights()}

        def receiving(offer: WeightOffer) -> dict[str, Coroutine[Any, Any, Any]]:
            return {worker.name: worker.receive_weights(offer, self._learner.read_weights) for worker in workers}

        if link.is_rendezvous:
            offer = WeightOffer(version=self._learner.version, num_buckets=len(link.layout.bucket_sizes), delivery={})
            both = await _together(self._timeout_s, {**sending, **receiving(offer)})
            sent: SentWeights = both[LEARNER]
        else:
            sent = (await _together(self._timeout_s, sending))[LEARNER]
            await _together(self._timeout_s, receiving(sent.offer))
        return sent

    async def _disconnect(self, failure: _PhaseFailed, *, is_last: bool) -> None:
        """Free all participants from what they wait for; whoever does not answer, or failed too often, is dropped."""
        self._link, self._connected = None, []
        await self._learner.close_weights()

        async def leave(worker: Worker) -> None:
            try:
                async with asyncio.timeout(GRACE_S):
                    await worker.disconnect_weights()
            except (RolloutError, WeightSyncError, TimeoutError) as error:
                self._rollouts.drop(worker, f"{failure}; asked to leave: {str(error) or 'no answer'}")

        await asyncio.gather(*(leave(worker) for worker in self._rollouts.workers))
        for worker in self._rollouts.workers:
            if is_last and worker.name == failure.who:
                self._rollouts.drop(worker, str(failure))


async def _together(timeout_s: float, calls: dict[str, Coroutine[Any, Any, T]]) -> dict[str, T]:
    """The results of all participants by name.

    Raises:
        _PhaseFailed: as soon as one of them failed or took more than `timeout_s`.
    """

    async def one(who: str, call: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(timeout_s + GRACE_S):
                return await call
        except (RolloutError, WeightSyncError) as error:
            raise _PhaseFailed(who, error) from error
        except TimeoutError as error:
            late = WeightSyncError(f"no reply within weights.timeout_s={timeout_s:g}")
            raise _PhaseFailed(who, late) from error

    tasks = {who: asyncio.create_task(one(who, call)) for who, call in calls.items()}
    try:
        results = await asyncio.gather(*tasks.values())
    finally:
        for task in tasks.values():
            task.cancel()
    return dict(zip(tasks, results, strict=True))
