"""The group of ranks that trains at present, and how it is formed anew when ranks were lost or have come up.

Ranks are plain actors that receive their share of each batch, not Ray Train workers that pull it. Ray Train restarts a
training function that owns the loop, from the last report on disk; here the loop belongs to `cluster/train.py`, and a
resize is: all discard what they did since the last finished update, meet again in the number that is there, read the
state from memory (`learner.elastic.copies`), and do the updates since once more, planned for their number.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from actors.errors import CheckpointError, LearnerError
from configs.learner import LearnerConfig
from configs.ranges import Range
from judge.limits import loop_time
from learner.elastic.attempt import Attempt, AttemptFailedError
from learner.elastic.copies import Copies
from learner.elastic.decisions import Form, GiveUp, Go, Observation, RankView, Wait, decide
from learner.elastic.history import Update, UpdateLog
from learner.elastic.members import Member, Members
from learner.elastic.remote import Rank, Tell

T = TypeVar("T")
logger = logging.getLogger(__name__)

GATHERING_S = 3.0
"""At the start, how long to wait for more ranks than the fewest: to form twice takes longer."""
COPYING_S = 10.0
"""How long to wait for copies that are under way when a rank was lost."""


class Formation:
    """Serving ranks in their order, kept sound."""

    def __init__(
        self,
        config: LearnerConfig,
        members: Members,
        copies: Copies,
        *,
        desired: Callable[[], Range],
        tell: Tell,
        log: UpdateLog,
        replay: Callable[[Sequence[Update]], Awaitable[None]],
    ) -> None:
        self._config = config
        self._members = members
        self._copies = copies
        self._desired = desired
        self._tell = tell
        self._log = log
        self._replay = replay
        self._attempt = Attempt(members, stall_timeout_s=config.stall_timeout_s, call_timeout_s=config.update_timeout_s)
        self.serving: list[Member] = []
        self.generation = 0
        """Counts the groups that were formed."""
        self._is_sound = False
        """Whether all serving ranks hold the state after the last call."""
        self._is_warm = False
        """Whether this group has finished an update."""
        self._num_attempts = 0
        self._lost_since: float | None = None
        """When the work began that was discarded, until it is begun again."""
        self._copying: asyncio.Task[None] | None = None
        self._forming: asyncio.Task[None] | None = None
        self._load: Callable[[Rank], Coroutine[Any, Any, int]] | None = None
        """How a rank reads the state at the start, if not from the model's files."""
        self.step = 0
        """Optimizer steps of the state."""

    async def start(self) -> None:
        """Form the first group as soon as the fewest ranks are up."""
        self._members.ask()
        until = loop_time() + self._config.update_timeout_s
        while len(self._members.up) < self._desired().minimum:
            await self._wait(until)
        until = loop_time() + GATHERING_S
        while len(self._members.up) < self._desired().maximum and loop_time() < until:
            await self._members.wait(until - loop_time())
        await self.ready()
        if self._config.copy_state:
            await self._copies.prepare(self.serving)

    async def call(
        self,
        what: str,
        call: Callable[[Rank], Coroutine[Any, Any, T]],
        *,
        must_move: bool = False,
    ) -> list[T]:
        """The same call to all serving ranks, once; results by rank.

        Raises:
            AttemptFailedError: a rank was lost. The group is not sound until it is `ready` again.
        """
        return await self.call_each(what, self.serving, [call(member.rank) for member in self.serving], must_move)

    async def call_each(
        self, what: str, group: Sequence[Member], calls: Sequence[Coroutine[Any, Any, T]], must_move: bool = False
    ) -> list[T]:
        """As `call`, with each rank's own arguments; `group` may be a part of the serving ranks."""
        is_as_before = False
        try:
            results = await self._attempt.call(what, group, calls, must_move=must_move, is_first=not self._is_warm)
            is_as_before = True
        except CheckpointError:  # of which no rank has taken anything over
            is_as_before = True
            raise
        finally:
            self._is_sound = self._is_sound and is_as_before
        return results

    async def until_done(self, work: Callable[[], Awaitable[T]], *, may_resize: bool = False) -> T:
        """Do this work on a sound group, again if a rank is lost meanwhile.

        Raises:
            LearnerError: it cannot be done.
        """
        while True:
            await self.ready(may_resize=may_resize)
            generation, started = self.generation, loop_time()
            try:
                result = await work()
            except AttemptFailedError as error:
                self.failed(error, since=started)
                continue
            if self._is_sound and self.generation == generation:
                self._num_attempts = 0
                return result
            # Ranks were lost in another call at the same time: the state is now the one before this work.

    def failed(self, error: AttemptFailedError, *, since: float | None = None) -> None:
        """An attempt at something failed, which made no progress since then."""
        self._num_attempts += 1
        if self._lost_since is None:
            self._lost_since = loop_time() if since is None else since
        logger.warning("the learner discards what it does: %s", error)

    async def ready(self, *, may_resize: bool = False) -> None:
        """Make the group sound; between updates it may also change its size.

        If the caller is cancelled, the group is formed nevertheless.
        """
        if self._forming is None or self._forming.done():
            self._forming = asyncio.create_task(self._make_ready(may_resize=may_resize))
        await asyncio.shield(self._forming)

    async def _make_ready(self, *, may_resize: bool) -> None:
        until, told = loop_time() + self._config.update_timeout_s, 0
        while True:
            self._members.ask()
            if self._is_sound and not may_resize and all(map(self._members.is_up, self.serving)):
                return
            match decide(await self._observe()):
                case Go():
                    self._dismiss_surplus()
                    return
                case GiveUp(reason=reason):
                    raise LearnerError(reason)
                case Wait(num_missing=num_missing):
                    if num_missing != told:
                        told = num_missing
                        self._tell("pending", "learner", f"waits for {num_missing} more ranks")
                    await self._wait(until)
                case Form(members=numbers):
                    try:
                        if self._is_sound and self._is_behind():
                            await self._keep_snapshot()  # takes less than to do again what came after the last one
                        await self._form([self._members.up[number] for number in numbers])
                    except AttemptFailedError as error:
                        self.failed(error)
                    else:
                        self._dismiss_surplus()
                        return

    async def _observe(self) -> Observation:
        numbers = tuple(member.number for member in self.serving if self._members.is_up(member))
        is_sound, desired = self._is_sound and len(numbers) == len(self.serving), self._desired()
        if not is_sound or len(self.serving) != min(len(self._members.up), desired.maximum):
            await self._finish_copying()
            await self._copies.refresh()
        return Observation(
            up=tuple(self._members.up),
            serving=numbers,
            desired=desired,
            is_sound=is_sound,
            has_state=self._log.since(self._snapshot()) is not None,
            num_attempts=self._num_attempts,
        )

    def _is_behind(self) -> bool:
        """Whether something was learned since the snapshot that a new group would start from."""
        updates = self._log.since(self._snapshot())
        return updates is not None and any(update.parts for update in updates)

    def _snapshot(self) -> int:
        source = self._copies.source()
        return source.snapshot if source is not None else 0

    async def _form(self, group: list[Member]) -> None:
        """Meet, restore, replay."""
        started, before = loop_time(), len(self.serving)
        source = self._copies.source()
        shares = self._copies.shares(source) if source is not None else []
        self.serving, self._is_sound, self._is_warm = group, False, False
        self.generation += 1
        await self.call("leave", lambda rank: rank.leave())  # which frees those that wait for one another
        ((address, port),) = await self.call_each("rendezvous", group[:1], [group[0].rank.rendezvous()])
        forming = [member.rank.form(rank, len(group), address, port) for rank, member in enumerate(group)]
        await self.call_each("start", group, forming)
        if shares:
            self.step = (await self.call("restore", lambda rank: rank.restore(shares)))[0]
        elif self._load is not None:
            self.step = (await self.call("load", self._load))[0]
        else:
            self.step = 0
        seconds = loop_time() - started
        lost_since, self._lost_since = self._lost_since, loop_time()
        if before:
            origin = "memory" if shares else "disk"
            self._tell(
                "reform",
                "learner",
                f"{before} -> {len(group)} ranks in {seconds:.1f} s, with the state of step {self.step} from {origin}",
                self._lost_since - (started if lost_since is None else lost_since),
            )
        restored = source.snapshot if source is not None else 0
        updates = self._log.since(restored)
        assert updates is not None, "decided with a whole state"
        if before and self._config.copy_state:
            await self._take_snapshot(restored)  # what the lost ranks held is gone
        await self._replay(updates)
        self._is_sound, self._lost_since = True, None

    async def load(self, load: Callable[[Rank], Coroutine[Any, Any, int]]) -> None:
        """Take over a state that all ranks can read."""
        await self._finish_copying()

        async def read() -> int:
            return (await self.call("load", load))[0]

        self.step = await self.until_done(read)
        self._load = load
        self._copies.clear()
        self._log.clear()

    async def finished(self) -> None:
        """The group has finished an update."""
        self._is_warm = True
        if self._config.copy_state:
            await self.copy()
        else:
            self._log.forget()

    async def copy(self) -> None:
        """Copy every rank's share to its own memory; other processes take theirs while the ranks go on.

        Skipped if that is still under way from the last time. A rank that is lost meanwhile shows in the next call.
        """
        if self._copying is None or self._copying.done():
            if self._copying is not None and not self._copying.cancelled():
                self._copying.result()  # a bug in it ends the run
            try:
                await self._take_snapshot()
            except AttemptFailedError as error:
                self.failed(error)

    async def _take_snapshot(self, restored: int | None = None) -> None:
        """Of the state between two updates, or of the one that was just restored from that snapshot."""
        group = list(self.serving)
        snapshot = await self._keep_snapshot(restored)
        self._copying = asyncio.create_task(self._spread(snapshot, group))

    async def _keep_snapshot(self, restored: int | None = None) -> int:
        """The same, in the memory of the ranks alone."""
        group, snapshot, oldest = list(self.serving), self._copies.begin(), self._copies.newest
        await self.call("snapshot", lambda rank: rank.keep_snapshot(snapshot, oldest=oldest))
        self._copies.taken(snapshot, group)
        self._log.mark(snapshot, like=restored)
        return snapshot

    async def _spread(self, snapshot: int, group: Sequence[Member]) -> None:
        try:
            async with asyncio.timeout(self._config.update_timeout_s):
                await self._copies.spread(snapshot, group)
        except (LearnerError, TimeoutError) as error:
            logger.warning("the learner's state was not copied to other processes: %s", error)
        else:
            self._log.forget(snapshot)

    async def _finish_copying(self) -> None:
        if self._copying is not None:
            await asyncio.wait([self._copying], timeout=COPYING_S)
            self._copying.cancel()
            await asyncio.wait([self._copying])

    def _dismiss_surplus(self) -> None:
        for member in self._members:
            if member not in self.serving and member.number >= self._members.num_wanted:
                self._members.dismiss(member)

    async def _wait(self, until: float) -> None:
        up, least = len(self._members.up), self._desired().minimum
        if loop_time() >= until:
            raise LearnerError(
                f"{up} of at least {least} learner ranks are up after learner.update_timeout_s="
                f"{self._config.update_timeout_s:g} s: add nodes, or lower learner.num_ranks={self._config.num_ranks}"
            )
        await self._members.wait(min(60.0, until - loop_time()))

    def views(self) -> list[RankView]:
        """All members."""
        ranks = {id(member): rank for rank, member in enumerate(self.serving)}
        return [
            RankView(
                number=member.number,
                state="pending" if not member.node else "serving" if id(member) in ranks else "spare",
                rank=ranks.get(id(member)),
                node=member.node,
            )
            for member in self._members
        ]

    async def close(self) -> None:
        for task in (self._forming, self._copying):
            if task is not None:
                task.cancel()
        await self._members.close()
