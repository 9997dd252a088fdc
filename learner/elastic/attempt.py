"""One call to all ranks of a group, with an end in any case: results, an error of the called code, or a failed attempt.

While the ranks work they are asked how far they are. One that is gone, does not answer or makes no progress ends the
attempt: it is killed, and the others are freed from the collective in which they wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

from actors.errors import InterruptedCallError, LearnerError, RankLostError, VisionThinkError
from learner.elastic.decisions import Beat, wedged
from learner.elastic.members import Member, Members

T = TypeVar("T")

MAX_QUESTION_PAUSE_S = 2.0
"""Between two questions to a rank."""
QUESTION_S = 2.0
"""Deadline of an answer when a call has failed."""
ABORT_S = 5.0
"""Deadline of the message that frees a rank."""


class AttemptFailedError(Exception):
    """All must discard the call: a rank is gone, or was cut off from the others. Those left wait for a new group."""


class Attempt:
    """Calls all members of a group at once."""

    def __init__(self, members: Members, *, stall_timeout_s: float, call_timeout_s: float) -> None:
        self._members = members
        self._stall_s = stall_timeout_s
        self._call_s = call_timeout_s

    async def call(
        self,
        what: str,
        group: Sequence[Member],
        calls: Sequence[Coroutine[Any, Any, T]],
        *,
        must_move: bool = False,
        is_first: bool = False,
    ) -> list[T]:
        """The results by rank.

        Args:
            must_move: the call consists of passes over micro-batches, each of which has to end in time.
            is_first: these passes are the first of the group.

        Raises:
            AttemptFailedError: a rank is gone or wedged, or a collective was cut off.
            LearnerError: the call took too long although all ranks made progress.
        """
        tasks = {member: asyncio.create_task(call) for member, call in zip(group, calls, strict=True)}
        results = asyncio.gather(*tasks.values())
        watch = asyncio.create_task(self._watch(tasks, must_move=must_move, is_first=is_first))
        try:
            both: list[asyncio.Future[Any]] = [results, watch]
            done, _ = await asyncio.wait(both, timeout=self._call_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                raise LearnerError(f"the learner's {what} took more than {self._call_s:g} s")
            if not results.done():
                await self._discard(what, tasks, watch.result())
            error = results.exception()
            if error is not None and await self._is_failed_attempt(error, group):
                watch.cancel()
                await self._discard(what, tasks, {})
            return list(results.result())
        finally:
            for task in (*tasks.values(), watch):
                task.cancel()
            await asyncio.gather(results, watch, return_exceptions=True)

    async def _is_failed_attempt(self, error: BaseException, group: Sequence[Member]) -> bool:
        """Whether an error says that ranks were lost or cut off, or follows from that."""
        if isinstance(error, RankLostError | InterruptedCallError):
            return True
        if isinstance(error, VisionThinkError | ValueError):
            return False
        # Deep in a backward pass, the loss of another rank may show in any way.
        found = await asyncio.gather(*(self._answers(member, QUESTION_S) for member in group))
        return not all(found)

    async def _answers(self, member: Member, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await member.rank.progress()
        except (LearnerError, TimeoutError):
            return False
        return True

    async def _discard(
        self, what: str, tasks: dict[Member, asyncio.Task[T]], doomed: dict[Member, tuple[str, str]]
    ) -> NoReturn:
        """Kill who is doomed, and wait until all others are free; whoever does not get free is killed as well.

        Raises:
            AttemptFailedError: done.
        """
        for member, (kind, reason) in doomed.items():
            self._members.lose(member, kind, reason)
        others = {member: task for member, task in tasks.items() if member not in doomed}

        async def free(member: Member) -> None:
            with suppress(LearnerError, TimeoutError):
                async with asyncio.timeout(ABORT_S):
                    await member.rank.abort()

        await asyncio.gather(*(free(member) for member, task in others.items() if not task.done()))
        if others:
            await asyncio.wait(others.values(), timeout=self._stall_s)
        reasons = [reason for _, reason in doomed.values()]
        for member, task in others.items():
            if not task.done():
                self._members.lose(member, "wedged", f"stays in {what} although it was told to leave it")
                continue
            error = task.exception()
            if isinstance(error, RankLostError):
                reasons.append(str(error))
                self._members.lose(member, "leave", str(error))
            elif isinstance(error, InterruptedCallError):
                reasons.append(str(error))
                if not await self._answers(member, self._stall_s):
                    self._members.lose(member, "wedged", f"no answer for {self._stall_s:g} s after: {error}")
            elif isinstance(error, VisionThinkError | ValueError):
                raise error
        raise AttemptFailedError(f"{what}: {reasons[0] if reasons else 'a rank was cut off'}")

    async def _watch(
        self, tasks: dict[Member, asyncio.Task[T]], *, must_move: bool, is_first: bool
    ) -> dict[Member, tuple[str, str]]:
        """Returns when members are gone or wedged: which, the kind of event, and why."""
        loop = asyncio.get_running_loop()
        pause_s = min(MAX_QUESTION_PAUSE_S, self._stall_s / 10)
        now = loop.time()
        beats = {member: Beat(answered_at=now, num_passes=0, moved_at=now) for member in tasks}
        lost: dict[Member, tuple[str, str]] = {}

        async def ask(member: Member) -> None:
            while True:
                await asyncio.sleep(pause_s)
                try:
                    num_passes = await member.rank.progress()
                except RankLostError as error:
                    lost[member] = ("leave", str(error))
                    return
                except InterruptedCallError:
                    continue
                at, last = loop.time(), beats[member]
                moved = num_passes != last.num_passes
                beats[member] = Beat(answered_at=at, num_passes=num_passes, moved_at=at if moved else last.moved_at)

        asking = [asyncio.create_task(ask(member)) for member in tasks]
        try:
            while not lost:
                await asyncio.sleep(pause_s)
                numbered = {member.number: member for member in tasks}
                working = [member.number for member, task in tasks.items() if must_move and not task.done()]
                found = wedged(
                    {number: beats[member] for number, member in numbered.items()},
                    working,
                    now=loop.time(),
                    timeout_s=self._stall_s,
                    is_first=is_first,
                )
                if found:
                    return {numbered[number]: ("wedged", reason) for number, reason in found.items()}
            return lost
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
