"""The processes of the learner as the driver sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from actors.weights.layout import SentWeights, WeightLink
from learner.batches.pictures import Picture
from learner.batches.plan import RankPlan
from learner.state.share_files import WrittenShare
from learner.update import UpdateReport


class ShareOwner(Protocol):
    """A process that keeps shares of the learner's state (`learner.state.snapshot.Share`)."""

    def share(self, snapshot: int, index: int) -> object:
        """Handle of a share; its bytes go directly to who reads it, not through the driver."""

    def header(self, snapshot: int, index: int) -> object:
        """Handle of its header (`learner.state.snapshot.ShareHeader`)."""


LentShare = tuple[object, object]
"""Handles of a header and of its share. Every rank reads all headers, and the shares that hold its part."""


class Holder(ShareOwner, Protocol):
    """Keeps copies of other processes' shares."""

    async def hold(self, snapshot: int, index: int, share: object, *, oldest: int) -> None:
        """Keep a copy, and drop snapshots before `oldest`."""

    async def answers(self) -> bool:
        """Whether it is still there."""


class Rank(ShareOwner, Protocol):
    """A remote `learner.worker.LearnerRank`.

    All methods raise RankLostError if its process is gone, and InterruptedCallError if a call was cut off.
    """

    async def up(self) -> str:
        """Returns the node once the process is there; waits for one as long as it takes."""

    async def progress(self) -> int:
        """Passes so far; answered while another call is in progress."""

    async def abort(self) -> None:
        """Make the call in progress fail soon."""

    async def kill(self) -> None:
        """End the process, whatever it does. Returns at once."""

    async def leave(self) -> None: ...
    async def rendezvous(self) -> tuple[str, int]: ...
    async def form(self, rank: int, world_size: int, address: str, port: int) -> None: ...
    async def keep_snapshot(self, snapshot: int, *, oldest: int) -> None: ...
    async def restore(self, shares: Sequence[LentShare]) -> int: ...
    async def begin(self) -> None: ...
    async def learn(self, plan: RankPlan, pictures: Sequence[Picture]) -> int: ...
    async def finish(self) -> UpdateReport: ...
    async def open_weights(self, num_receivers: int) -> WeightLink: ...
    async def join_weights(self) -> None: ...
    async def send_weights(self) -> SentWeights | None: ...
    async def release_weights(self) -> None: ...
    async def close_weights(self) -> None: ...

    def read_weights(self, bucket: int) -> object:
        """Handle of a bucket; its bytes go directly to the receiver, not through the driver."""

    async def export_hf(self, folder: str) -> None: ...
    async def snapshot(self) -> None: ...
    async def begin_save(self, url: str, folder: str, optimizer_step: int) -> None: ...
    async def finish_save(self, timeout_s: float) -> WrittenShare: ...
    async def load(self, url: str, folder: str) -> int: ...
    async def shutdown(self) -> None: ...


StartRank = Callable[[int], Rank]
"""Asks for the process of a member, by its number. It may stay pending until there is a place for it."""


class Tell(Protocol):
    """Is told what happens: kind of event, who, detail, and the seconds without progress that it cost, if any."""

    def __call__(self, kind: str, who: str, detail: str, seconds: float | None = None) -> None: ...
