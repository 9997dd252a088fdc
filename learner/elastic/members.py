"""The members of the learner: processes that are pending, up, or serving as ranks; lost ones are asked for again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from actors.errors import LearnerError, RankLostError
from configs.ranges import Range
from learner.elastic.decisions import MAX_START_FAILURES
from learner.elastic.remote import Rank, StartRank, Tell

MAX_PAUSE_S = 60.0
"""Between restarts of a process that dies before it is up."""


@dataclass(eq=False, slots=True, kw_only=True)
class Member:
    """One process, from the moment it is asked for. It is never restarted: another takes its number."""

    number: int
    place: str
    """Its name as a holder of shares; unlike the number, that of no other process."""
    rank: Rank
    node: str = ""
    """Empty while pending."""

    @property
    def name(self) -> str:
        return f"learner rank {self.number}"


class Members:
    """Keeps as many processes asked for as are wanted, and says which are up."""

    def __init__(self, start_rank: StartRank, desired: Callable[[], Range], tell: Tell, num_spares: int = 0) -> None:
        self._start_rank = start_rank
        self._desired = desired
        self._num_spares = num_spares
        self._tell = tell
        self._by_number: dict[int, Member] = {}
        self._serial = 0
        self._failures: dict[int, int] = {}
        """Of a number's processes in a row, before they were up."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._error: BaseException | None = None
        self._is_closed = False

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._by_number.values()))

    def is_up(self, member: Member) -> bool:
        return self._by_number.get(member.number) is member and bool(member.node)

    @property
    def up(self) -> dict[int, Member]:
        """By number."""
        return {number: member for number, member in self._by_number.items() if member.node}

    @property
    def num_wanted(self) -> int:
        """Processes to ask for: as many as may serve, and spares."""
        return self._desired().maximum + self._num_spares

    def ask(self) -> None:
        """Ask for every process that is wanted and not there.

        Raises what kept a process from starting, unless it was only lost.
        """
        if self._error is not None:
            raise self._error
        for number in range(self.num_wanted):
            if number not in self._by_number:
                self._ask(number)

    async def wait(self, timeout_s: float) -> None:
        """Wait until a process is up or lost, or the time has passed.

        Raises what kept a process from starting, unless it was only lost.
        """
        self._changed.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            pass
        if self._error is not None:
            raise self._error

    def lose(self, member: Member, kind: str, reason: str) -> None:
        """A process is gone, or has to go; another one is asked for if it is wanted."""
        if self._by_number.get(member.number) is not member:
            return
        self._drop(member, kind, reason)
        if member.number < self.num_wanted and not self._is_closed:
            self._ask(member.number)

    def dismiss(self, member: Member) -> None:
        """It is no longer wanted."""
        self._drop(member, "leave", "the learner is to be smaller")

    async def close(self) -> None:
        """Stop asking for processes; those that are not up yet are killed."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(member.rank.kill() for member in self if not member.node), return_exceptions=True)

    def _drop(self, member: Member, kind: str, reason: str) -> None:
        del self._by_number[member.number]
        self._tell(kind, member.name, reason)
        self._spawn(member.rank.kill())
        self._changed.set()

    def _ask(self, number: int) -> None:
        self._serial += 1
        member = Member(number=number, place=f"rank {number}, process {self._serial}", rank=self._start_rank(number))
        self._by_number[number] = member
        self._spawn(self._bring_up(member))

    async def _bring_up(self, member: Member) -> None:
        try:
            node = await member.rank.up()
        except RankLostError as error:
            await self._start_again(member, error)
        else:
            if self._by_number.get(member.number) is member:
                self._failures.pop(member.number, None)
                member.node = node
                self._tell("join", member.name, f"up on node {node[:8]}")
        self._changed.set()

    async def _start_again(self, member: Member, error: RankLostError) -> None:
        failures = self._failures[member.number] = self._failures.get(member.number, 0) + 1
        if failures >= MAX_START_FAILURES:
            self._error = LearnerError(f"{member.name} died {failures} times before it was up: {error}")
            return
        await asyncio.sleep(min(MAX_PAUSE_S, 2.0 ** (failures - 1)))
        self.lose(member, "restart", str(error))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._error = error
            self._changed.set()
