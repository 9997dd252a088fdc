"""The way of the weights from the learner to the rollout workers, seen from the driver.

The driver moves no bytes: it tells both ends when to connect, send, receive and commit (rule E of the reliability
rules), and sees to it that a member that fails costs itself and not the run. Whoever joins takes the current version
before it serves: by itself where the learner keeps the last version in shared memory, or else with the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from actors.errors import LearnerError, LostBucketError, RolloutError, WeightSyncError
from actors.fleet.pool import RolloutPool, Worker
from actors.weights.layout import SentWeights, WeightLink, WeightOffer
from cluster.staleness import PublishedVersions
from cluster.sync_phase import GRACE_S, LEARNER, PhaseFailed, running, together
from learner.group import LearnerGroup

logger = logging.getLogger(__name__)

MAX_FAILURES = 2
"""Times that one member may fail within a publication before it is dropped, or the learner before the run ends."""
RECHECK_S = 1.0
"""How often a joiner that waits for a publication looks whether it is the only one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What one publication took."""

    version: int
    seconds: float
    """From the call until every worker serves the version."""
    transfer_s: float
    """Of it, until the version had arrived everywhere."""
    send_s: float
    """Of that, within the learner."""
    commit_s: float
    """From then on until every worker serves the version."""
    pause_s: float
    """Longest time for which a worker could generate nothing."""


class WeightChannel:
    """Publishes the learner's weights to all rollout workers, and brings joiners to the current version.

    `before_publish` is called before each sync of any worker; if it raises, nothing is sent.
    """

    def __init__(
        self,
        learner: LearnerGroup,
        rollouts: RolloutPool,
        *,
        timeout_s: float,
        before_publish: Callable[[], None] = lambda: None,
    ) -> None:
        self.published = PublishedVersions()
        self.version: int | None = None
        """The current version: announced last, though it may still be on its way. None before the first."""
        self.on_drop: Callable[[Worker, str], None] = lambda worker, cause: None
        """Called with each joiner that fails, and why; those that serve are dropped from the pool."""
        self._learner = learner
        self._rollouts = rollouts
        self._timeout_s = timeout_s
        self._before_publish = before_publish
        self._link: WeightLink | None = None
        self._generation = 0
        self._connected: list[Worker] = []
        self._sent: SentWeights | None = None
        """The version sent last, if it can still be fetched."""
        self._joiners: list[Worker] = []
        self._confirmed: dict[Worker, int] = {}
        self._fetching: set[asyncio.Task[None]] = set()
        self._one_at_a_time = asyncio.Lock()
        self._next_publication = asyncio.Event()

    def join(self, worker: Worker) -> None:
        """Let a worker that does not serve yet take part in publications."""
        if worker not in self._joiners:
            self._joiners.append(worker)

    def leave(self, worker: Worker) -> None:
        """The worker serves, or is gone: it is no joiner any more."""
        if worker in self._joiners:
            self._joiners.remove(worker)

    def confirmed(self, worker: Worker) -> int | None:
        """The version that a worker has confirmed last."""
        return self._confirmed.get(worker)

    async def publish(self) -> Publication:
        """Bring every rollout worker to the learner's weights, under version = optimizer step.

        Workers that fail or time out are dropped and killed; the others are connected anew if they have to be. Where
        members come back, a publication without any is fine: they take it when they are there.

        Raises:
            WeightSyncError: no worker has the version, or the learner cannot send it.
            LearnerError: a rank died.
        """
        self._before_publish()
        started = time.monotonic()
        self.version = self._learner.version  # what a joiner has confirmed is old from here on
        self.published.add(self.version)
        for fetching in self._fetching:
            fetching.cancel()
        async with self._one_at_a_time:
            return await self._publish(started)

    async def catch_up(self, worker: Worker, say: Callable[[str], None] = lambda words: None) -> None:
        """Return once a joiner has confirmed the current version. `say` is told what it waits for.

        Raises:
            RolloutError, WeightSyncError: it cannot take it.
        """
        failures = 0
        while self.version is None or self._confirmed.get(worker) != self.version:
            waits_for = "the learner's next version"
            if self._has_kept():
                try:
                    if await self._fetch(worker):
                        continue
                except LostBucketError as error:
                    waits_for = f"the learner's next version, as the last one cannot be fetched: {error}"
                except (RolloutError, WeightSyncError):
                    failures += 1
                    if failures >= MAX_FAILURES:
                        raise
                    continue
            elif self._may_send_again():
                with contextlib.suppress(LearnerError, WeightSyncError):  # it is not the joiner's fault
                    await self._send_again()
                    continue
            say(waits_for)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RECHECK_S):
                    await self._next_publication.wait()

    def _has_kept(self) -> bool:
        """Whether the current version lies ready to be fetched."""
        if self._sent is None or self._link is None or self._one_at_a_time.locked():
            return False
        return self._generation == self._learner.generation and self._sent.offer.version == self.version

    async def _fetch(self, worker: Worker) -> bool:
        """Take the kept version; False if a publication came in between, in which the joiner takes part."""
        fetching = asyncio.create_task(self._fetch_kept(worker))
        self._fetching.add(fetching)
        try:
            await asyncio.wait([fetching])
            return not fetching.cancelled() and fetching.result() is None
        finally:
            self._fetching.discard(fetching)
            fetching.cancel()

    async def _fetch_kept(self, worker: Worker) -> None:
        link, sent = self._link, self._sent
        assert link is not None
        assert sent is not None
        self._before_publish()
        version, read = sent.offer.version, self._learner.read_weights
        try:
            for call in (
                lambda: worker.connect_weights(_linked(link, 1)),
                lambda: worker.receive_weights(sent.offer, read),
                lambda: worker.commit_weights(version, sent.digests),
            ):
                await together(self._timeout_s, {worker.name: call()})
        except PhaseFailed as failure:
            raise failure.cause from None
        if worker not in self._connected:
            self._connected.append(worker)
        self._confirmed[worker] = version

    def _may_send_again(self) -> bool:
        """Whether nobody serves, so that no publication comes before somebody does."""
        is_idle = not self._one_at_a_time.locked() and self._learner.version == self.version
        return self.version is not None and is_idle and not self._rollouts.workers

    async def _send_again(self) -> None:
        async with self._one_at_a_time:
            if not self._rollouts.workers:
                self._before_publish()
                await self._publish(time.monotonic())

    async def _publish(self, started: float) -> Publication:
        failures: Counter[str] = Counter()
        self._sent = None
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._forget_link)
            while True:
                try:
                    publication = await self._attempt(started)
                    if self._link is not None:
                        await together(self._timeout_s, {LEARNER: self._learner.release_weights()})
                    break
                except PhaseFailed as failure:
                    failures[failure.who] += 1
                    logger.warning("publishing weights failed and is tried again: %s", failure)
                    if failures[LEARNER] >= MAX_FAILURES:
                        raise WeightSyncError(str(failure)) from failure.__cause__
                    await self._disconnect(failure, is_last=failures[failure.who] >= MAX_FAILURES)
            on_failure.pop_all()
        self._next_publication.set()
        self._next_publication = asyncio.Event()
        return publication

    def _forget_link(self) -> None:
        """Who is connected to whom is not known any more."""
        self._link, self._connected = None, []

    @property
    def _participants(self) -> list[Worker]:
        return [*self._rollouts.workers, *(each for each in self._joiners if each not in self._rollouts.workers)]

    async def _attempt(self, started: float) -> Publication:
        """Connect if the members have changed, transfer, commit."""
        workers = self._participants
        if not workers and not self._rollouts.refills:
            raise WeightSyncError("no rollout worker is left to take the weights")
        link = await self._linked_with(workers)
        connected = time.monotonic()
        version, pauses, send_s = self._learner.version, dict[str, float](), 0.0
        if workers or link.keeps_last:
            sent = await self._transfer(link, workers)
            transferred = time.monotonic()
            version, digests, send_s = sent.offer.version, sent.digests, sent.seconds
            commits = {worker.name: worker.commit_weights(version, digests) for worker in workers}
            pauses = await together(self._timeout_s, commits, is_independent=True)
            self._confirmed = dict.fromkeys(workers, version)
            self._sent = sent if link.keeps_last else None
        else:
            transferred = connected
        committed = time.monotonic()
        return Publication(
            version=version,
            seconds=committed - started,
            transfer_s=transferred - connected,
            pause_s=max(pauses.values(), default=0.0),
            send_s=send_s,
            commit_s=committed - transferred,
        )

    async def _linked_with(self, workers: list[Worker]) -> WeightLink:
        link = self._link
        if link is None or self._generation != self._learner.generation:
            return await self._connect(workers)
        if workers == self._connected:
            return link
        if not link.keeps_last:
            return await self._connect(workers)
        new = [worker for worker in workers if worker not in self._connected]
        await together(self._timeout_s, {each.name: each.connect_weights(_linked(link, 1)) for each in new})
        self._connected = workers
        return link

    async def _connect(self, workers: list[Worker]) -> WeightLink:
        num_receivers = sum(worker.num_receivers for worker in workers)
        link = (await together(self._timeout_s, {LEARNER: self._learner.open_weights(num_receivers)}))[LEARNER]
        generation = self._learner.generation  # opening may have formed it anew
        if workers or not link.is_rendezvous:
            joining: dict[str, Coroutine[Any, Any, Any]] = {LEARNER: self._learner.join_weights()}
            offset = 1  # the learner is the first of all
            for worker in workers:
                joining[worker.name] = worker.connect_weights(_linked(link, offset))
                offset += worker.num_receivers
            await together(self._timeout_s, joining)
        self._link, self._generation, self._connected = link, generation, workers
        return link

    async def _transfer(self, link: WeightLink, workers: list[Worker]) -> SentWeights:
        sending = {LEARNER: self._learner.send_weights()}
        ahead = WeightOffer(version=self._learner.version, num_buckets=len(link.layout.bucket_sizes), delivery={})

        def receiving(offer: WeightOffer, workers: list[Worker]) -> dict[str, Coroutine[Any, Any, Any]]:
            return {worker.name: worker.receive_weights(offer, self._learner.read_weights) for worker in workers}

        if link.is_rendezvous:
            both = await together(self._timeout_s, {**sending, **receiving(ahead, workers)})
            sent: SentWeights = both[LEARNER]
            return sent
        follow = [worker for worker in workers if link.is_followed and worker.reaches_learner]
        async with running(receiving(ahead, follow)) as following:
            sent = (await together(self._timeout_s, sending))[LEARNER]
            rest = receiving(sent.offer, [worker for worker in workers if worker not in follow])
            await together(self._timeout_s, {**following, **rest}, is_independent=True)
        return sent

    async def _disconnect(self, failure: PhaseFailed, *, is_last: bool) -> None:
        """Free all participants from what they wait for; whoever does not answer, or failed too often, is dropped.

        The learner is asked first: if it is dead, no worker is to blame.
        """
        self._forget_link()
        # The learner has a second chance; its deadlines are its own, as it may re-form.
        with contextlib.suppress(WeightSyncError):
            await self._learner.close_weights()

        async def leave(worker: Worker) -> None:
            try:
                async with asyncio.timeout(GRACE_S):
                    await worker.disconnect_weights()
            except (RolloutError, WeightSyncError, TimeoutError) as error:
                self._drop(worker, f"{failure}; asked to leave: {str(error) or 'no answer'}")

        await asyncio.gather(*(leave(worker) for worker in self._participants))
        for worker in self._participants:
            if is_last and worker.name == failure.who:
                self._drop(worker, str(failure))

    def _drop(self, worker: Worker, cause: str) -> None:
        if worker in self._joiners:
            self.leave(worker)
            worker.kill()
            self.on_drop(worker, cause)
        self._rollouts.drop(worker, cause)


def _linked(link: WeightLink, offset: int) -> WeightLink:
    """The link of one worker: its receivers are counted from `offset`."""
    return replace(link, settings={**link.settings, "rank_offset": offset})
