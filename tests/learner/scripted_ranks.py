"""Scripted learner ranks: processes on nodes that can be killed, stuck or late, and remember what they have learned.

As real ranks do, those of a group wait for one another in every call, and one that is gone cuts the others off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from actors.errors import InterruptedCallError, RankLostError
from actors.weights.layout import SentWeights, TensorSpec, WeightLink, WeightOffer, lay_out
from configs.learner import LearnerConfig
from learner.group import LearnerGroup
from learner.update import UpdateReport

LINK = WeightLink(
    transport="shared_memory",
    is_rendezvous=False,
    layout=lay_out([TensorSpec(name="w", dtype="float32", shape=(2, 3))], bucket_bytes=4096),
    settings={"file": "/proc/77/fd/3"},
    timeout_s=1.0,
)
START_S, PASS_S = 5.0, 0.5


@dataclass(eq=False)
class Meeting:
    """A process group: every call of its members is a collective."""

    size: int
    arrived: dict[int, list[object]] = field(default_factory=dict)
    """What each rank brought to each of its calls so far."""
    broken: str = ""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def exchange(self, rank: int, brought: object) -> list[object]:
        """What all ranks have brought to the call of this number."""
        mine = self.arrived.setdefault(rank, [])
        number = len(mine)
        mine.append(brought)
        self._notify()
        while not self.broken and not self._is_there(number):
            await self.changed.wait()
        if self.broken:
            raise InterruptedCallError(f"connection closed by peer: {self.broken}")
        return [self.arrived[each][number] for each in range(self.size)]

    def cut(self, reason: str) -> None:
        self.broken = self.broken or reason
        self._notify()

    def _is_there(self, number: int) -> bool:
        return len(self.arrived) == self.size and all(len(each) > number for each in self.arrived.values())

    def _notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class ScriptedRank:
    """`learner.elastic.remote.Rank`. Its state is what it learned: row numbers, and `step` for each optimizer step."""

    def __init__(self, world: World, number: int, node: str) -> None:
        self.world, self.number, self.node = world, number, node
        self.is_alive, self.is_stopped = True, False
        self.stuck_in: str | None = None
        self.is_cut_off = False
        """Once: the next call ends although everybody lives."""
        self.history: tuple[object, ...] = ()
        self.snapshots: dict[int, tuple[object, ...]] = {}
        self.meeting: Meeting | None = None
        self.num_passes = 0
        self.calls: list[str] = []
        self._gone = asyncio.Event()

    async def up(self) -> str:
        await self.world.place_for(self)
        await self._live(asyncio.sleep(START_S))
        if self.world.fails_to_start(self):
            self.die("out of memory")
        await self._live(asyncio.sleep(0))
        return self.node

    def die(self, reason: str = "killed") -> None:
        self.is_alive = False
        self._gone.set()
        self.world.gone(self)
        if self.meeting is not None:
            self.meeting.cut(f"rank {self.number} {reason}")

    async def kill(self) -> None:
        self.die()

    async def progress(self) -> int:
        await self._live(self._unless_stopped())
        return self.num_passes

    async def abort(self) -> None:
        await self._live(self._unless_stopped())

    async def leave(self) -> None:
        await self._live(self._unless_stopped())
        if self.meeting is not None:
            self.meeting.cut(f"rank {self.number} left")
        self.meeting = None

    async def rendezvous(self) -> tuple[str, int]:
        await self._live(self._unless_stopped())
        return self.node, self.world.new_meeting()

    async def form(self, rank: int, world_size: int, address: str, port: int) -> None:
        self.rank, self.num_passes, self.history = rank, 0, ()
        self.meeting = self.world.meetings.setdefault(port, Meeting(size=world_size))
        await self._collective("form")

    async def restore(self, shares) -> int:
        assert [header() for header, _ in shares] == [share() for _, share in shares], "the headers of these shares"
        kept = [share() for _, share in shares]
        assert len({(snapshot, num) for snapshot, num, _, _ in kept}) == 1, "of one snapshot"
        assert [index for _, _, index, _ in kept] == list(range(kept[0][1])), "every share of it"
        self.history = kept[0][3]
        await self._collective("restore")
        return self._version

    async def keep_snapshot(self, snapshot: int, *, oldest: int) -> None:
        await self._live(self._unless_stopped())
        self.snapshots = {number: kept for number, kept in self.snapshots.items() if number >= oldest}
        self.snapshots[snapshot] = (self.meeting.size, self.rank, self.history)

    def share(self, snapshot: int, index: int) -> Callable[[], tuple]:
        return lambda: self._kept(snapshot)

    header = share

    def _kept(self, snapshot: int) -> tuple:
        assert self.is_alive, "asked a dead process for a share"
        return (snapshot, *self.snapshots[snapshot])

    async def begin(self) -> None:
        await self._collective("begin")

    async def learn(self, plan, pictures) -> int:
        rows = frozenset(picture.ref.row for picture in pictures)
        self.history += (frozenset().union(*await self._collective("learn", rows)),)
        for _ in range(len(plan.mini_batches) - plan.is_open):
            self.history += ("step",)
        return self._version

    async def finish(self) -> UpdateReport:
        await self._collective("finish")
        if self.history[-1] != "step":
            self.history += ("step",)
        return UpdateReport(
            start_version=0,
            optimizer_step=self._version,
            num_tokens=1,
            seconds=1.0,
            metrics={"size": self.meeting.size},
        )

    async def open_weights(self, num_receivers: int) -> WeightLink:
        await self._live(self._unless_stopped())
        return LINK

    async def join_weights(self) -> None:
        await self._live(self._unless_stopped())

    async def send_weights(self) -> SentWeights | None:
        await self._collective("send")
        if self.rank:
            return None
        return SentWeights(
            offer=WeightOffer(version=self._version, num_buckets=1, delivery={}), digests=(1,), seconds=0.0
        )

    async def release_weights(self) -> None:
        await self._live(self._unless_stopped())

    async def close_weights(self) -> None:
        await self._live(self._unless_stopped())

    async def export_hf(self, folder: str) -> None:
        await self._collective("export")

    async def load(self, url: str, folder: str) -> int:
        await self._collective("load")
        self.history = self.world.disk[folder]
        return self._version

    async def shutdown(self) -> None:
        await self._live(self._unless_stopped())

    @property
    def _version(self) -> int:
        return self.history.count("step")

    async def _collective(self, what: str, brought: object = None) -> list[object]:
        self.calls.append(what)
        self.world.on_call(self, what)
        return await self._live(self._work(what, brought))

    async def _work(self, what: str, brought: object) -> list[object]:
        await self._unless_stopped()
        await asyncio.sleep(PASS_S)
        self.num_passes += 1
        if self.stuck_in == what:
            await asyncio.Event().wait()
        if self.is_cut_off:
            self.is_cut_off = False
            self.meeting.cut(f"rank {self.number} could not be reached")
        return await self.meeting.exchange(self.rank, brought)

    async def _unless_stopped(self) -> None:
        if self.is_stopped:
            await asyncio.Event().wait()

    async def _live(self, work):
        """This work, or RankLostError as soon as the process is gone."""
        tasks = [asyncio.ensure_future(work), asyncio.ensure_future(self._gone.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not self.is_alive:
                raise RankLostError(f"process {self.number} is gone")
            return tasks[0].result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class ScriptedHolder:
    """`learner.elastic.remote.Holder`."""

    hold_s = PASS_S / 2

    def __init__(self, node: str) -> None:
        self.node = node
        self.is_alive = True
        self.held: dict[tuple[int, int], tuple] = {}

    async def hold(self, snapshot: int, index: int, share, *, oldest: int) -> None:
        await asyncio.sleep(self.hold_s)
        if not self.is_alive:
            raise RankLostError("the holder is gone")
        self.held = {key: kept for key, kept in self.held.items() if key[0] >= oldest}
        self.held[snapshot, index] = share()

    def share(self, snapshot: int, index: int) -> Callable[[], tuple]:
        assert self.is_alive
        return lambda: self.held[snapshot, index]

    header = share

    async def answers(self) -> bool:
        return self.is_alive


class World:
    """Nodes with room for one rank each, and what happens on them."""

    def __init__(self, *nodes: str) -> None:
        self.nodes = dict.fromkeys(nodes, True)
        self.ranks: list[ScriptedRank] = []
        self.holders: dict[str, ScriptedHolder] = {}
        self.meetings: dict[int, Meeting] = {}
        self.disk: dict[str, tuple[object, ...]] = {}
        self.events: list[tuple[str, str, str]] = []
        self.lost_s: dict[str, float] = {}
        """Seconds without progress, by kind of event."""
        self.num_failing_starts = 0
        self.on_call: Callable[[ScriptedRank, str], None] = lambda rank, what: None
        self._taken: dict[str, ScriptedRank] = {}

    def learner(self, **settings) -> LearnerGroup:
        async def nodes():
            return [node for node, is_there in self.nodes.items() if is_there]

        desired = settings.pop("desired", None)
        config = LearnerConfig(**{"prompts_per_mini_batch": 4, "stall_timeout_s": 10.0, **settings})
        return LearnerGroup(
            config,
            self._start_rank,
            self._start_holder,
            list_nodes=nodes,
            desired=desired,
            tell=self._tell,
        )

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _, _ in self.events]

    def serving(self) -> list[ScriptedRank]:
        return [rank for rank in self.ranks if rank.is_alive and rank.meeting is not None]

    def lose_node(self, node: str) -> None:
        self.nodes[node] = False
        if node in self.holders:
            self.holders.pop(node).is_alive = False
        if node in self._taken:
            self._taken[node].die("lost its node")

    async def place_for(self, rank: ScriptedRank) -> None:
        while True:
            for node, is_there in self.nodes.items():
                if is_there and node not in self._taken:
                    self._taken[node], rank.node = rank, node
                    return
            await asyncio.sleep(0.1)

    def gone(self, rank: ScriptedRank) -> None:
        self._taken = {node: taken for node, taken in self._taken.items() if taken is not rank}

    def fails_to_start(self, rank: ScriptedRank) -> bool:
        self.num_failing_starts -= 1
        return self.num_failing_starts >= 0

    def new_meeting(self) -> int:
        return len(self.meetings) + 1

    def _tell(self, kind: str, who: str, detail: str, seconds: float | None = None) -> None:
        self.events.append((kind, who, detail))
        self.lost_s[kind] = self.lost_s.get(kind, 0.0) + (seconds or 0.0)

    def _start_rank(self, number: int) -> ScriptedRank:
        self.ranks.append(ScriptedRank(self, number, ""))
        return self.ranks[-1]

    def _start_holder(self, node: str) -> ScriptedHolder:
        holder = self.holders[node] = ScriptedHolder(node)
        holder.is_alive = self.nodes[node]
        return holder
