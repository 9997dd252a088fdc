"""Pool of rollout workers: routes groups to the least loaded worker.

It knows its workers only through a Protocol. If a group fails but its worker keeps running, the group is lost and the
worker stays (for exceptions see `suspicion.py`). If the worker fails, the group is retried on another one with the next
attempt number. A worker that fails, or misses a version of the weights (`cluster/weights.py`), is dropped and killed,
which frees its process and GPU. Members come and go: `cluster/runtime/members.py` adds, drains and drops them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from actors.episode import PlayedGroup, SkippedSample
from actors.errors import RolloutError, SampleError
from actors.fleet.suspicion import FailureHistory, is_faulty
from actors.play import PlayRequest
from actors.weights.layout import WeightLink, WeightOffer

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 2
HEALTH_TIMEOUT_S = 60.0
"""Timeout for a worker to show that its engine still generates."""


class Worker(Protocol):
    """A rollout worker, wherever it runs. A failure of the worker or its engine is a RolloutError."""

    @property
    def name(self) -> str: ...

    async def play(self, request: PlayRequest) -> tuple[PlayedGroup | SkippedSample, Any]:
        """The group, and a handle of its full view; SampleError if only this group failed."""

    async def check_health(self) -> None:
        """Return once the engine has generated something; RolloutError if it cannot."""

    @property
    def num_receivers(self) -> int:
        """Processes of its engine that receive weights."""

    @property
    def reaches_learner(self) -> bool:
        """Whether it reaches the memory of the learner that it has joined."""

    async def connect_weights(self, link: WeightLink) -> None:
        """Join the learner. This and the next two raise WeightSyncError if the engine itself is well."""

    async def receive_weights(self, offer: WeightOffer, read_bucket: Callable[[int], object]) -> None:
        """Receive a version; `read_bucket` gives a handle of a bucket's bytes, where its memory cannot be reached."""

    async def commit_weights(self, version: int, digests: Sequence[int]) -> float:
        """Serve the received version; returns the seconds for which nothing could be generated."""

    async def disconnect_weights(self) -> None:
        """Leave the learner, whatever is under way."""

    async def sleep(self) -> None:
        """Give the engine's GPU memory back until the next version is committed."""

    def kill(self) -> None:
        """End its process immediately and release its resources. Does not wait and never fails."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a worker of the pool has to do."""

    num_groups: int
    """In flight."""
    progress_at: float
    """When it last finished a group, showed that it generates, or got its first group (time of the event loop)."""


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class _Member:
    """A worker of the pool and what the pool knows about it."""

    worker: Worker
    dropped: asyncio.Future[str]
    """Resolved with the cause when it is dropped."""
    num_in_flight: int = 0
    progress_at: float = 0.0
    is_draining: bool = False
    history: FailureHistory = dataclasses.field(default_factory=FailureHistory)
    health_check: asyncio.Task[bool] | None = None
    """In progress, shared by all groups that timed out."""


class RolloutPool:
    """Routes groups.

    `group_timeout_s` bounds one attempt, `health_timeout_s` a worker's answer to the question whether its engine still
    generates. With `refills`, groups wait while no worker is there; otherwise they fail.
    """

    def __init__(
        self,
        workers: Sequence[Worker] = (),
        *,
        max_groups_in_flight: int,
        group_timeout_s: float,
        health_timeout_s: float = HEALTH_TIMEOUT_S,
        refills: bool = False,
    ) -> None:
        self.on_drop: Callable[[Worker, str], None] = lambda worker, cause: None
        """Called with each worker that is dropped, and why."""
        self.refills = refills
        self._members: dict[Worker, _Member] = {}
        self._max_groups_in_flight = max_groups_in_flight
        self._by_load: list[dict[_Member, None]] = [{} for _ in range(max_groups_in_flight + 1)]
        """Members that may get groups, by their number of groups: the least loaded one is found without a search."""
        self._group_timeout_s = group_timeout_s
        self._health_timeout_s = health_timeout_s
        self._waiting: deque[asyncio.Future[_Member | None]] = deque()
        self._starved_since: float | None = None
        self._failure: BaseException | None = None
        for worker in workers:
            self._members[worker] = _Member(worker=worker, dropped=asyncio.Future())
            self._by_load[0][self._members[worker]] = None

    @property
    def num_workers(self) -> int:
        return len(self.workers)

    @property
    def workers(self) -> list[Worker]:
        """Those that may get groups, in the order in which they came."""
        return [worker for worker, member in self._members.items() if not member.is_draining]

    def load(self, worker: Worker) -> Load | None:
        """Of a worker; None if it is not, or no longer, in the pool."""
        member = self._members.get(worker)
        return None if member is None else Load(num_groups=member.num_in_flight, progress_at=member.progress_at)

    @property
    def starved_s(self) -> float:
        """Seconds for which groups have waited while no worker could play them; 0 if one can."""
        return 0.0 if self._starved_since is None else _now() - self._starved_since

    def add(self, worker: Worker) -> None:
        """Give groups to a worker that serves the current version of the weights."""
        member = _Member(worker=worker, dropped=asyncio.Future(), progress_at=_now())
        self._members[worker] = member
        self._by_load[0][member] = None
        self._starved_since = None
        self._assign_workers()

    def drain(self, worker: Worker) -> None:
        """Give no more groups to a worker. It keeps those that it has, until it is dropped."""
        if (member := self._members.get(worker)) is not None:
            member.is_draining = True
            self._by_load[member.num_in_flight].pop(member, None)
            self._assign_workers()

    def drop(self, worker: Worker, cause: str) -> None:
        """Remove a worker and kill it. Its groups are retried on others."""
        if (member := self._members.get(worker)) is not None:
            self._drop(member, cause)

    def note_progress(self, worker: Worker) -> None:
        """The worker has shown that it still generates."""
        if (member := self._members.get(worker)) is not None:
            member.progress_at = _now()

    def fail(self, error: BaseException) -> None:
        """No worker will come any more: all groups that wait, and those asked for later, end with this error."""
        self._failure = error
        self._assign_workers()

    async def play(self, request: PlayRequest) -> tuple[PlayedGroup | SkippedSample, Any]:
        """Play one group on the least loaded worker; if that worker fails, retry once on another.

        Raises:
            SampleError: the group failed, but not its worker.
            RolloutError: the workers of both attempts failed, or no worker is left.
            RunError: no worker will come any more.
        """
        failures: list[str] = []
        while len(failures) < MAX_ATTEMPTS:
            member = await self._acquire(is_first=not failures)
            try:
                played = await self._attempt(
                    member, dataclasses.replace(request, attempt=request.attempt + len(failures))
                )
            except SampleError as error:
                self._record_failure(member, request.ref.uid, str(error))
                raise SampleError(f"sample {request.ref.uid} failed on {member.worker.name}: {error}") from error
            except RolloutError as error:
                failures.append(f"{member.worker.name}: {error}")
                self._drop(member, str(error))
            else:
                member.progress_at = _now()
                if isinstance(played[0], PlayedGroup):
                    member.history = member.history.after_success()
                return played
            finally:
                self._release(member)
        raise RolloutError(f"sample {request.ref.uid} failed on every attempt: {'; '.join(failures)}")

    async def sleep(self) -> None:
        """Let all engines give their GPU memory back until the next version of the weights; one that cannot is dropped.

        No group may be under way.
        """

        async def one(member: _Member) -> None:
            try:
                async with asyncio.timeout(self._health_timeout_s):
                    await member.worker.sleep()
            except (RolloutError, TimeoutError) as error:
                self._drop(member, f"falling asleep: {str(error) or 'no answer'}")

        await asyncio.gather(*(one(member) for member in list(self._members.values())))

    async def _attempt(self, member: _Member, request: PlayRequest) -> tuple[PlayedGroup | SkippedSample, Any]:
        """One attempt with a timeout. A timeout is attributed to the sample if the worker is healthy."""
        try:
            async with asyncio.timeout(self._group_timeout_s):
                return await self._unless_dropped(member, request)
        except TimeoutError as error:
            cause = f"no reply within rollout.group_timeout_s={self._group_timeout_s:g}"
            if await self._is_healthy(member):
                raise SampleError(cause) from error
            raise RolloutError(f"{cause}, and its engine generates nothing") from error

    async def _unless_dropped(self, member: _Member, request: PlayRequest) -> tuple[PlayedGroup | SkippedSample, Any]:
        """Play; a worker that is dropped meanwhile is not waited for."""
        playing = asyncio.ensure_future(member.worker.play(request))
        try:
            either: list[asyncio.Future[Any]] = [playing, member.dropped]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not playing.done():
                raise RolloutError(member.dropped.result())
            return playing.result()
        finally:
            playing.cancel()

    async def _is_healthy(self, member: _Member) -> bool:
        """Whether the worker's engine still generates. Concurrent callers share one check."""
        if member.health_check is None or member.health_check.done():
            member.health_check = asyncio.create_task(self._check_health(member.worker))
        return await asyncio.shield(member.health_check)

    async def _check_health(self, worker: Worker) -> bool:
        try:
            async with asyncio.timeout(self._health_timeout_s):
                await worker.check_health()
        except (RolloutError, TimeoutError):
            return False
        return True

    async def _acquire(self, *, is_first: bool) -> _Member:
        """A worker with a free slot. First come, first served, except that retried groups go to the front, so that a
        step never waits for groups of the next one."""
        if self._failure is not None:
            raise self._failure
        turn: asyncio.Future[_Member | None] = asyncio.get_running_loop().create_future()
        if is_first:
            self._waiting.append(turn)
        else:
            self._waiting.appendleft(turn)
        self._assign_workers()
        try:
            member = await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and (unused := turn.result()) is not None:
                self._release(unused)
            raise
        if member is not None:
            return member
        if self._failure is not None:
            raise self._failure
        raise RolloutError("no rollout worker is left")

    def _assign_workers(self) -> None:
        """Assign free slots to the waiting groups, oldest first; None to all of them when no worker will come."""
        while self._waiting:
            member = self._least_loaded()
            is_hopeless = self._failure is not None or not (self._members or self.refills)
            if member is None and not is_hopeless:
                if self._starved_since is None and not any(self._by_load):
                    self._starved_since = _now()
                return
            turn = self._waiting.popleft()
            if turn.done():  # cancelled
                continue
            if member is not None:
                if member.num_in_flight == 0:
                    member.progress_at = _now()
                self._set_load(member, member.num_in_flight + 1)
            turn.set_result(member)

    def _least_loaded(self) -> _Member | None:
        return next((next(iter(members)) for members in self._by_load[: self._max_groups_in_flight] if members), None)

    def _set_load(self, member: _Member, num_in_flight: int) -> None:
        self._by_load[member.num_in_flight].pop(member, None)
        member.num_in_flight = num_in_flight
        if self._members.get(member.worker) is member and not member.is_draining:
            self._by_load[num_in_flight][member] = None

    def _release(self, member: _Member) -> None:
        self._set_load(member, member.num_in_flight - 1)
        self._assign_workers()

    def _record_failure(self, member: _Member, sample: str, cause: str) -> None:
        """Record a failed sample, and drop the worker if it is now considered faulty."""
        member.history = member.history.after_failure(sample)
        others = (other.history for other in self._members.values() if other is not member)
        if is_faulty(member.history, others):
            num_failed = len(member.history.failed_samples)
            self._drop(member, f"{num_failed} consecutive samples failed on this worker only, the last one: {cause}")

    def _drop(self, member: _Member, cause: str) -> None:
        if self._members.get(member.worker) is member:
            del self._members[member.worker]
            self._by_load[member.num_in_flight].pop(member, None)
            logger.warning("%s is dropped: %s", member.worker.name, cause)
            member.dropped.set_result(cause)
            member.worker.kill()
            self.on_drop(member.worker, cause)
        self._assign_workers()


def _now() -> float:
    return asyncio.get_running_loop().time()
