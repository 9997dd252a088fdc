"""The members of the rollout fleet: executes what `actors.fleet.membership` decides, and tells of each change.

A task looks at the members at every change and at least once a second. Nothing that it does waits: starts, syncs and
probes run beside it, and their ends are changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

from actors.errors import BrokenWorkerError, RolloutError, RunError, WeightSyncError
from actors.fleet.membership import (
    Admit,
    Decision,
    Drain,
    GiveUp,
    Kill,
    Member,
    Observed,
    Policy,
    Slot,
    Start,
    State,
    Sync,
    Wait,
    is_lacking,
    num_up,
    reconcile,
)
from actors.fleet.pool import RolloutPool, Worker
from cluster.records.events import Event, Kind, OnEvent
from cluster.runtime.seats import Cluster, MemberWorker, Seat, Weights, WorkerView
from configs.ranges import Range

logger = logging.getLogger(__name__)

TICK_S = 1.0
"""Longest time between two looks at the members."""
MIN_PAUSE_S = 0.02
MAX_SHARE = 0.005
"""Of the driver's time for looking at the members: changes that come together in a large fleet share a look."""
PENDING_S = 5.0
"""A member that has no room after this time is told of."""
PROBES_PER_DEADLINE = 4
"""How often a silent member is asked for a sign of life within `rollout.progress_timeout_s`."""


class Members:
    """The fleet of a run. Members that serve are in the pool; the others are only here.

    Args:
        start: (slot, number of starts in it before) -> a worker that is starting.
        desired: asked at each look, so that the fleet may be scaled.
        look: actor ids -> where they are; None where they have room at once.
        on_close: ends what `start` keeps beside the members.
    """

    def __init__(
        self,
        pool: RolloutPool,
        weights: Weights,
        start: Callable[[int, int], MemberWorker],
        policy: Policy,
        *,
        desired: Callable[[], Range],
        emit: OnEvent,
        look: Callable[[Sequence[str]], Awaitable[Cluster]] | None = None,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self._pool = pool
        self._weights = weights
        self._start = start
        self._policy = policy
        self._desired = desired
        self._emit = emit
        self._look = look
        self._on_close = on_close
        self._seats: dict[int, Seat] = {}
        self._slots: dict[int, Slot] = {}
        self._num_starts: dict[int, int] = {}
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._last_desired = desired()
        self._lacking_since: float | None = None
        self._version: int | None = None
        self._version_since = 0.0
        self._has_been_up = False
        self._cause = ""
        self._told = ""
        pool.refills = True
        pool.on_drop = weights.on_drop = self._on_drop

    async def up(self) -> None:
        """Start, and return once as many members are ready as the run needs.

        Raises:
            RolloutError: they did not come up.
        """
        self._spawn(self._tick())
        self._spawn(self._keep_probing())
        if self._look is not None:
            self._spawn(self._keep_looking(self._look))
        await asyncio.shield(self._up)

    async def close(self) -> None:
        """Let the members end their own processes; those that have not come up are killed."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._on_close()
        goodbyes = []
        for seat in self._seats.values():
            if seat.is_ready and seat.death is None:
                goodbyes.append(seat.worker.shutdown())
            else:
                seat.worker.kill()
        await asyncio.gather(*goodbyes)

    def members(self) -> tuple[WorkerView, ...]:
        """All members, by slot."""
        now = _now()
        return tuple(
            WorkerView(
                name=seat.worker.name,
                state=seat.state.value,
                version=self._weights.confirmed(seat.worker),
                num_groups=load.num_groups if (load := self._pool.load(seat.worker)) else 0,
                node=seat.node,
                for_s=now - seat.since,
                waits_for=seat.waits_for,
            )
            for _, seat in sorted(self._seats.items())
        )

    async def _tick(self) -> None:
        while True:
            self._changed.clear()
            started = time.thread_time()
            while self._act():
                pass
            await asyncio.sleep(max(MIN_PAUSE_S, (time.thread_time() - started) / MAX_SHARE))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._changed.wait()

    def _act(self) -> bool:
        """Look once and do what follows; returns whether another look is needed."""
        changes = [self._execute(decision) for decision in reconcile(self._observe(), self._policy)]
        return any(changes)

    def _observe(self) -> Observed:
        now, desired = _now(), self._desired()
        if desired != self._last_desired:
            self._tell("scale", "rollout fleet", f"from {self._last_desired} to {desired} workers")
            self._last_desired = desired
        if self._weights.version != self._version:
            self._version, self._version_since = self._weights.version, now
        members = tuple(self._member(seat) for seat in self._seats.values())
        self._has_been_up = self._has_been_up or num_up(members) > 0
        if not self._up.done() and num_up(members) >= desired.minimum:
            self._up.set_result(None)
        is_running = self._up.done()
        if not is_lacking(members, 1 if is_running else desired.minimum):
            self._lacking_since, self._told = None, ""
        elif self._lacking_since is None:
            self._lacking_since = now
        return Observed(
            now=now,
            desired=desired,
            version=self._version,
            members=members,
            slots=tuple(self._slots.get(number, Slot()) for number in range(desired.maximum)),
            is_running=is_running,
            has_been_up=self._has_been_up,
            lacking_since=self._lacking_since,
            cause=self._missing_room() or self._cause,
        )

    def _missing_room(self) -> str:
        waiting = (seat for seat in self._seats.values() if not seat.is_placed and seat.waits_for)
        return next((f"{seat.worker.name} waits for {seat.waits_for}" for seat in waiting), "")

    def _member(self, seat: Seat) -> Member:
        load = self._pool.load(seat.worker)
        return Member(
            slot=seat.slot,
            state=seat.state,
            since=max(seat.since, self._version_since) if seat.state is State.SYNCING else seat.since,
            is_placed=seat.is_placed,
            is_ready=seat.is_ready,
            version=self._weights.confirmed(seat.worker),
            num_groups=load.num_groups if load else 0,
            progress_at=load.progress_at if load else seat.since,
            death=seat.death,
            is_broken=seat.is_broken,
            leaves_at=seat.leaves_at,
        )

    def _execute(self, decision: Decision) -> bool:
        """Returns whether something has changed by it at once."""
        match decision:
            case Start():
                self._begin(decision)
            case Sync():
                return self._sync(self._seats[decision.slot])
            case Admit():
                self._admit(self._seats[decision.slot])
            case Drain():
                self._drain(self._seats[decision.slot], decision)
            case Kill():
                self._kill(self._seats[decision.slot], decision)
            case Wait() | GiveUp():
                self._stand(decision)
                return False
        return True

    def _begin(self, decision: Start) -> None:
        number, slot = self._num_starts.get(decision.slot, 0), self._slots.get(decision.slot, Slot())
        self._num_starts[decision.slot] = number + 1
        if decision.is_restart:
            now = _now()
            recent = tuple(at for at in slot.restarts if at > now - self._policy.restart_window_s)
            self._slots[decision.slot] = Slot(restarts=(*recent, now))
        worker = self._start(decision.slot, number)
        seat = Seat(slot=decision.slot, worker=worker, since=_now(), is_placed=self._look is None)
        self._seats[decision.slot] = seat
        seat.watching = (self._spawn(self._get_ready(seat)), self._spawn(self._watch(seat)))
        if decision.is_restart:
            num = len(self._slots[decision.slot].restarts)
            self._tell("restart", worker.name, f"restart {num} of rollout.max_restarts={self._policy.max_restarts}")

    async def _get_ready(self, seat: Seat) -> None:
        try:
            await seat.worker.ready()
        except RolloutError as error:
            seat.is_broken = isinstance(error, BrokenWorkerError)
            seat.death = seat.death or str(error)
        else:
            seat.is_ready = seat.is_placed = True
        self._changed.set()

    async def _watch(self, seat: Seat) -> None:
        cause = await seat.worker.ended()
        if not seat.is_ready and seat.death is None:  # how it failed is known better where it was waited for
            await asyncio.wait(seat.watching[:1], timeout=TICK_S)
        seat.death = seat.death or cause
        self._changed.set()

    def _sync(self, seat: Seat) -> bool:
        if seat.syncing is not None and not seat.syncing.done():
            return False
        if seat.state is State.STARTING:
            seat.state, seat.since = State.SYNCING, _now()
            self._weights.join(seat.worker)
        seat.syncing = self._spawn(self._catch_up(seat))
        return True

    async def _catch_up(self, seat: Seat) -> None:
        def say(words: str) -> None:
            if words != seat.waits_for:
                seat.waits_for = words
                if self._weights.version is not None:  # at the start of a run all wait for the first version
                    self._tell("pending", seat.worker.name, f"it is up and waits for {words}")

        try:
            await self._weights.catch_up(seat.worker, say)
        except (RolloutError, WeightSyncError) as error:
            seat.death = seat.death or f"it could not take the weights: {error}"
        seat.waits_for = ""
        self._changed.set()

    def _admit(self, seat: Seat) -> None:
        assert self._weights.confirmed(seat.worker) == self._weights.version
        self._weights.leave(seat.worker)
        seat.state, seat.since = State.SERVING, _now()
        starved_s = self._pool.starved_s
        self._pool.add(seat.worker)
        self._tell("join", seat.worker.name, f"serves version {self._weights.version}", starved_s or None)

    def _drain(self, seat: Seat, decision: Drain) -> None:
        kind: Kind = "drain" if seat.leaves_at is None else "preempted"
        seat.state, seat.since, seat.leaves_at = State.DRAINING, _now(), decision.deadline
        self._weights.leave(seat.worker)
        self._pool.drain(seat.worker)
        self._tell(kind, seat.worker.name, decision.reason)

    def _kill(self, seat: Seat, decision: Kill) -> None:
        del self._seats[seat.slot]  # before the pool tells of the drop
        for task in (*seat.watching, seat.syncing, seat.probing):
            if task is not None:
                task.cancel()
        self._weights.leave(seat.worker)
        if self._pool.load(seat.worker) is None:
            seat.worker.kill()
        self._pool.drop(seat.worker, decision.reason)
        restarts = self._slots.get(seat.slot, Slot()).restarts
        if decision.is_failure:
            self._cause = f"{seat.worker.name}: {decision.reason}"
        self._slots[seat.slot] = Slot(restarts=restarts, is_replacement=decision.is_failure, freed_at=_now())
        self._tell("wedged" if decision.is_wedged else "leave", seat.worker.name, decision.reason)

    def _stand(self, decision: Wait | GiveUp) -> None:
        if decision.reason == self._told:
            return
        self._told = decision.reason
        if isinstance(decision, Wait):
            self._tell("pending", "rollout fleet", decision.reason)
            return
        self._tell("stop", "rollout fleet", decision.reason)
        self._fail(RunError(decision.reason) if self._up.done() else RolloutError(decision.reason))

    def _on_drop(self, worker: Worker, cause: str) -> None:
        """The pool or the weight channel has dropped a member."""
        for seat in self._seats.values():
            if seat.worker is worker:
                seat.death = seat.death or cause
                self._changed.set()

    async def _keep_looking(self, look: Callable[[Sequence[str]], Awaitable[Cluster]]) -> None:
        while True:
            cluster = await look(tuple(seat.worker.actor_id for seat in self._seats.values() if seat.node is None))
            for seat in list(self._seats.values()):
                self._locate(seat, seat.node or cluster.nodes.get(seat.worker.actor_id), cluster.draining)
            await asyncio.sleep(TICK_S)

    def _locate(self, seat: Seat, node: str | None, draining: Mapping[str, float]) -> None:
        now = _now()
        seat.node = node
        if node is not None and not seat.is_placed:
            seat.is_placed, seat.since, seat.waits_for = True, now, ""
            self._changed.set()
        if not seat.is_placed and now - seat.since > PENDING_S and not seat.is_told_pending:
            seat.is_told_pending, seat.waits_for = True, "a node with room for it"
            self._tell("pending", seat.worker.name, f"it waits for {seat.waits_for}")
        if node is not None and node in draining and seat.leaves_at is None and seat.state is not State.DRAINING:
            seat.leaves_at = now + draining[node]
            self._changed.set()

    async def _keep_probing(self) -> None:
        while True:
            for seat in self._seats.values():
                self._probe(seat)
            await asyncio.sleep(TICK_S)

    def _probe(self, seat: Seat) -> None:
        """Ask a member that was silent for some time for a sign of life."""
        load, patience_s = self._pool.load(seat.worker), self._policy.progress_timeout_s
        if load is None or not load.num_groups or (seat.probing is not None and not seat.probing.done()):
            return
        if _now() - load.progress_at > patience_s / PROBES_PER_DEADLINE:
            seat.probing = self._spawn(self._ask_for_life(seat, patience_s))

    async def _ask_for_life(self, seat: Seat, patience_s: float) -> None:
        with contextlib.suppress(RolloutError, TimeoutError):  # silence is judged by its length
            async with asyncio.timeout(patience_s):
                await seat.worker.check_health()
            self._pool.note_progress(seat.worker)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_end)
        return task

    def _on_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """The run cannot continue: whoever waits for a worker gets the error."""
        if not self._up.done():
            self._up.set_exception(error)
        self._pool.fail(error)

    def _tell(self, kind: Kind, who: str, detail: str, seconds: float | None = None) -> None:
        self._emit(Event(kind=kind, who=who, detail=detail, seconds=seconds))


def _now() -> float:
    return asyncio.get_running_loop().time()
