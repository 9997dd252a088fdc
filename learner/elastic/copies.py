"""Copies of the learner's state in memory: where each share of the last snapshots lies.

After an update every rank copies its share to its own host memory, and another process's memory takes a second copy,
on another node if there is one, while the next update is already computed. So a lost process or node loses no state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from actors.errors import LearnerError
from learner.elastic.decisions import Held, Source, holder_node, newest_whole
from learner.elastic.members import Member, Members
from learner.elastic.remote import Holder, LentShare, ShareOwner

StartHolder = Callable[[str], Holder]
"""Starts a holder on a node."""
ListNodes = Callable[[], Awaitable[Sequence[str]]]
"""The nodes of the cluster that are alive."""


class Copies:
    """Takes snapshots and finds them again."""

    def __init__(self, members: Members, start_holder: StartHolder, list_nodes: ListNodes) -> None:
        self._members = members
        self._start_holder = start_holder
        self._list_nodes = list_nodes
        self._holders: dict[str, Holder] = {}
        """By node."""
        self._held: set[Held] = set()
        self._num_snapshots = 0
        self.newest = 0
        """The last snapshot of which all copies are in place; 0 if there is none."""

    def begin(self) -> int:
        """The number of a new snapshot, which every rank is to take now."""
        self._num_snapshots += 1
        return self._num_snapshots

    def taken(self, snapshot: int, group: Sequence[Member]) -> None:
        """All ranks of the group have their own copy."""
        self._held |= self._own(snapshot, group)

    async def prepare(self, group: Sequence[Member]) -> None:
        """Ask for the processes that will hold copies, so that the first copy need not wait until they are up."""
        for node in await self._holder_nodes(group):
            self._holder(node)

    async def spread(self, snapshot: int, group: Sequence[Member]) -> None:
        """Copy the ranks' shares to other processes; then earlier snapshots are not needed any more.

        Raises:
            LearnerError: a rank or a holder is gone. What was held before is still held.
        """
        nodes = await self._holder_nodes(group)
        held = await asyncio.gather(*(self._hold(snapshot, index, group, node) for index, node in enumerate(nodes)))
        self._held = self._own(snapshot, group) | set(held)
        self.newest = snapshot

    async def refresh(self) -> None:
        """Forget holders that are gone."""

        async def check(node: str, holder: Holder) -> None:
            if not await holder.answers():
                del self._holders[node]

        await asyncio.gather(*(check(node, holder) for node, holder in list(self._holders.items())))

    def source(self) -> Source | None:
        """The newest whole state."""
        return newest_whole(self._held, list(self._owners()))

    def shares(self, source: Source) -> list[LentShare]:
        """Its shares, in the order of their ranks."""
        owners, snapshot = self._owners(), source.snapshot
        return [
            (owners[place].header(snapshot, index), owners[place].share(snapshot, index))
            for index, place in enumerate(source.places)
        ]

    def clear(self) -> None:
        """Another state was loaded: what is held is none of it."""
        self._held.clear()
        self.newest = 0

    def _owners(self) -> dict[str, ShareOwner]:
        """Living processes that may hold shares by name, the ranks first."""
        return {
            **{member.place: member.rank for member in self._members.up.values()},
            **{_place(node): holder for node, holder in self._holders.items()},
        }

    async def _holder_nodes(self, group: Sequence[Member]) -> list[str]:
        """By rank, the node whose memory takes its copy."""
        nodes, rank_nodes = await self._list_nodes(), [member.node for member in group]
        return [holder_node(node, rank_nodes, nodes) for node in rank_nodes]

    def _holder(self, node: str) -> Holder:
        if node not in self._holders:
            self._holders[node] = self._start_holder(node)
        return self._holders[node]

    async def _hold(self, snapshot: int, index: int, group: Sequence[Member], node: str) -> Held:
        holder = self._holder(node)
        try:
            await holder.hold(snapshot, index, group[index].rank.share(snapshot, index), oldest=self.newest)
        except LearnerError:
            if self._holders.get(node) is holder and not await holder.answers():
                del self._holders[node]
            raise
        return self._entry(snapshot, index, group, _place(node))

    def _own(self, snapshot: int, group: Sequence[Member]) -> set[Held]:
        return {self._entry(snapshot, index, group, member.place) for index, member in enumerate(group)}

    def _entry(self, snapshot: int, index: int, group: Sequence[Member], place: str) -> Held:
        return Held(snapshot=snapshot, index=index, num_shares=len(group), place=place)


def _place(node: str) -> str:
    return f"holder on {node}"
