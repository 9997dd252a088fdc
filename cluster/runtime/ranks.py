"""Learner ranks as Ray actors, and the images that an update reads."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any, TypeVar, cast

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.errors import InterruptedCallError, LearnerError, RankLostError, VisionThinkError, root_cause
from actors.hub import local_copy
from actors.images import View_HW3, ViewSpec
from actors.importing import in_background, no_collections
from actors.weights.layout import SentWeights, WeightLink
from cluster.records.events import Event, OnEvent
from cluster.runtime.failures import STORE_FAILURES, is_ray_failure, kind_of
from cluster.runtime.placement import Placement, actor_options
from configs.learner import LearnerConfig
from configs.ranges import Range
from configs.schema import Config, DataConfig, ModelConfig
from configs.seeds import derive_seed
from learner.batches.pictures import Picture, PictureReader
from learner.batches.plan import RankPlan
from learner.elastic.remote import LentShare
from learner.group import LearnerGroup
from learner.state.share_files import WrittenShare
from learner.update import UpdateReport

T = TypeVar("T")
logger = logging.getLogger(__name__)
WATCH, MEMORY, SAVING = "watch", "memory", "saving"
"""Threads of a rank beside the one that works (concurrency groups of its actor)."""
HOLDER_S = 5.0
"""In which a holder has to say that it is there."""
PICTURE_PATIENCE_S = 30.0
"""Total seconds that a part of an update waits for images that the object store does not deliver."""


class FetchedViews:
    """`learner.batches.collate.FullViews` of a plan: from the object store, or from the data set if it lost them."""

    def __init__(self, pictures: Sequence[Picture], reader: PictureReader, patience_s: float) -> None:
        self._pictures = pictures
        self._reader = reader
        self._patience_s = patience_s
        self._read_again: dict[int, View_HW3] = {}

    def __getitem__(self, number: int, /) -> View_HW3:
        if number not in self._read_again:
            started = time.monotonic()
            try:
                view: View_HW3 = ray.get(self._pictures[number].handle, timeout=self._patience_s)
            except RayError as error:
                # After a hang, wait less for the store.
                self._patience_s = max(1.0, self._patience_s - (time.monotonic() - started))
                logger.warning("image %d is read from the data set again: %s", number, root_cause(error))
            else:
                return view
            self._read_again[number] = self._reader.read(self._pictures[number])
        return self._read_again[number]


class RankHost:
    """A learner rank in its actor. PyTorch and DeepSpeed are imported there, not by the driver.

    One thread works; others answer meanwhile, and hand shares of the state to other processes. One that nobody waits
    for gets ready at a lower priority.
    """

    def __init__(
        self, learner: LearnerConfig, model: ModelConfig, data: DataConfig, *, is_awaited: bool, **settings: Any
    ) -> None:
        self._get_ready: Callable[[Callable[[], Any]], Any] = _at_once if is_awaited else in_background
        with no_collections():
            self._get_ready(lambda: import_module("learner.worker"))
        from learner.worker import LearnerRank

        model = replace(model, path=local_copy(model.path))
        self._rank = LearnerRank(learner, model, **settings)
        spec = ViewSpec.from_model(model)
        self._reader = PictureReader(spec, data)
        self._patience_s = min(PICTURE_PATIENCE_S, learner.stall_timeout_s / 2)
        self._update_timeout_s = learner.update_timeout_s
        self._shares: dict[int, Any] = {}
        """This rank's own, by snapshot."""

    def up(self) -> str:
        """Get ready to meet others; the node that this rank is on."""
        with no_collections():
            self._get_ready(self._rank.prepare)
        node: str = ray.get_runtime_context().get_node_id()
        return node

    def progress(self) -> int:
        return self._rank.num_passes

    def abort(self) -> None:
        self._rank.abort()

    def share(self, snapshot: int) -> Any:
        """This rank's share of a snapshot."""
        return self._shares[snapshot]

    def snapshot(self) -> None:
        """Take one that is saved from here, and not returned."""
        self._rank.snapshot()

    def keep_snapshot(self, snapshot: int, oldest: int) -> None:
        self._shares = {number: share for number, share in self._shares.items() if number >= oldest}
        self._shares[snapshot] = self._rank.snapshot()

    def header(self, snapshot: int) -> Any:
        return self._shares[snapshot].header

    def restore(self, shares: Sequence[LentShare]) -> int:
        """The shares are fetched one by one, and only those that hold this rank's part."""
        headers = ray.get([header for header, _ in shares], timeout=self._update_timeout_s)

        def read_rows(index: int) -> Any:
            return ray.get(cast(Any, shares[index][1]), timeout=self._update_timeout_s).state_3N

        return int(self._call("restore", headers, read_rows))

    def learn(self, plan: RankPlan, pictures: Sequence[Picture]) -> int:
        """Handles in `pictures` are passed as references, so that a lost one does not fail the call."""
        return int(self._call("learn", plan, FetchedViews(pictures, self._reader, self._patience_s)))

    def call(self, method: str, *given: Any) -> Any:
        """Any other method of the rank."""
        return self._call(method, *given)

    def _call(self, method: str, *given: Any) -> Any:
        try:
            return getattr(self._rank, method)(*given)
        except RuntimeError as error:
            if self._rank.is_cut_off(error):
                raise InterruptedCallError(f"{method}: {error}") from error
            raise


def _at_once(work: Callable[[], T]) -> T:
    return work()


class HolderHost:
    """Copies of learner ranks' shares, in the memory of a process of its own: it survives theirs."""

    def __init__(self) -> None:
        self._shares: dict[tuple[int, int], Any] = {}
        """By snapshot and index."""

    def hold(self, snapshot: int, index: int, share: Any, oldest: int) -> None:
        """The share comes as a view into the object store, which is to be free again."""
        self._shares = {key: held for key, held in self._shares.items() if key[0] >= oldest}
        self._shares[snapshot, index] = replace(share, state_3N=share.state_3N.copy())

    def share(self, snapshot: int, index: int) -> Any:
        return self._shares[snapshot, index]

    def header(self, snapshot: int, index: int) -> Any:
        return self._shares[snapshot, index].header

    def ping(self) -> None:
        pass


class RayActor:
    """Calls to one actor of the learner, with errors that say whether it is gone."""

    def __init__(self, actor: Any, name: str) -> None:
        self._actor = actor
        self._name = name

    async def _await_remote(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except RayTaskError as error:
            if is_ray_failure(error):  # an argument did not arrive
                raise InterruptedCallError(f"{self._name}: {kind_of(error)}: {root_cause(error)}") from error
            if isinstance(error.cause, VisionThinkError | ValueError):
                raise error.cause from error
            raise
        except (ActorUnavailableError, *STORE_FAILURES) as error:
            raise InterruptedCallError(f"{self._name}: {kind_of(error)}: {root_cause(error)}") from error
        except RayError as error:
            if is_ray_failure(error):
                raise RankLostError(f"{self._name}: {kind_of(error)}: {root_cause(error)}") from error
            raise


class RayRank(RayActor):
    """`learner.elastic.remote.Rank` over a Ray actor."""

    async def up(self) -> str:
        node: str = await self._await_remote(self._actor.up.remote())
        return node

    async def progress(self) -> int:
        return await self._await_remote(self._beside("progress", WATCH).remote())

    async def abort(self) -> None:
        await self._await_remote(self._beside("abort", WATCH).remote())

    async def kill(self) -> None:
        ray.kill(self._actor)

    def share(self, snapshot: int, index: int) -> object:
        return self._beside("share", MEMORY).remote(snapshot)

    def header(self, snapshot: int, index: int) -> object:
        return self._beside("header", MEMORY).remote(snapshot)

    async def rendezvous(self) -> tuple[str, int]:
        address, port = await self._call("rendezvous")
        return address, port

    async def leave(self) -> None:
        await self._call("leave")

    async def form(self, rank: int, world_size: int, address: str, port: int) -> None:
        await self._call("form", rank, world_size, address, port)

    async def keep_snapshot(self, snapshot: int, *, oldest: int) -> None:
        await self._await_remote(self._actor.keep_snapshot.remote(snapshot, oldest))

    async def restore(self, shares: Sequence[LentShare]) -> int:
        return await self._await_remote(self._actor.restore.remote(shares))

    async def begin(self) -> None:
        await self._call("begin")

    async def learn(self, plan: RankPlan, pictures: Sequence[Picture]) -> int:
        return await self._await_remote(self._actor.learn.remote(plan, pictures))

    async def finish(self) -> UpdateReport:
        report: UpdateReport = await self._call("finish")
        return report

    async def open_weights(self, num_receivers: int) -> WeightLink:
        link: WeightLink = await self._call("open_weights", num_receivers)
        return link

    async def join_weights(self) -> None:
        await self._call("join_weights")

    async def send_weights(self) -> SentWeights | None:
        sent: SentWeights | None = await self._call("send_weights")
        return sent

    def read_weights(self, bucket: int) -> object:
        return self._actor.call.remote("read_weights", bucket)

    async def release_weights(self) -> None:
        await self._call("release_weights")

    async def close_weights(self) -> None:
        await self._call("close_weights")

    async def export_hf(self, folder: str) -> None:
        await self._call("export_hf", folder)

    async def snapshot(self) -> None:
        await self._await_remote(self._actor.snapshot.remote())

    async def begin_save(self, url: str, folder: str, optimizer_step: int) -> None:
        await self._await_remote(self._beside("call", SAVING).remote("begin_save", url, folder, optimizer_step))

    async def finish_save(self, timeout_s: float) -> WrittenShare:
        call = self._beside("call", SAVING).remote("finish_save", timeout_s)
        written: WrittenShare = await self._await_remote(call)
        return written

    async def load(self, url: str, folder: str) -> int:
        return int(await self._call("load", url, folder))

    async def shutdown(self) -> None:
        await self._call("shutdown")

    def _beside(self, method: str, group: str) -> Any:
        """A method of the actor, run by other threads than the one that works."""
        return getattr(self._actor, method).options(concurrency_group=group)

    async def _call(self, method: str, *given: object) -> Any:
        return await self._await_remote(self._actor.call.remote(method, *given))


class RayHolder(RayActor):
    """`learner.elastic.remote.Holder` over a Ray actor."""

    def share(self, snapshot: int, index: int) -> object:
        return self._actor.share.remote(snapshot, index)

    def header(self, snapshot: int, index: int) -> object:
        return self._actor.header.remote(snapshot, index)

    async def hold(self, snapshot: int, index: int, share: object, *, oldest: int) -> None:
        await self._await_remote(self._actor.hold.remote(snapshot, index, share, oldest))

    async def answers(self) -> bool:
        try:
            async with asyncio.timeout(HOLDER_S):
                await self._await_remote(self._actor.ping.remote())
        except (LearnerError, TimeoutError):
            return False
        return True


def start_learner(
    config: Config,
    placement: Placement,
    *,
    on_event: OnEvent = lambda event: None,
    desired: Callable[[], Range] | None = None,
) -> LearnerGroup:
    """The learner of a run, whose ranks and holders are Ray actors.

    Args:
        on_event: is told what happens to members.
        desired: how many ranks there may be, if not `learner.num_ranks`; asked between updates.
    """
    environment = {}
    if not config.learner.num_gpus:
        environment = {
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": str(config.learner.num_threads),
            # By default a thread that waits for another spins, and keeps the core from it where others want cores too.
            "OMP_WAIT_POLICY": "PASSIVE",
        }
    # Given where the actor class is made: `options` does not take concurrency groups.
    actor_class = ray.remote(concurrency_groups={WATCH: 1, MEMORY: 1, SAVING: 2})(RankHost)
    actor_class = actor_class.options(**actor_options(placement.rank, environment))

    asked: set[int] = set()

    def start_rank(number: int) -> RayRank:
        # Where others stand by, one that is asked for in place of a lost one will stand by next.
        is_awaited = config.learner.num_spares == 0 or number not in asked
        asked.add(number)
        actor = actor_class.remote(
            config.learner,
            config.model,
            config.data,
            is_awaited=is_awaited,
            seed=derive_seed(config.run.seed, "learner"),
            temperature=config.rollout.temperature,
            weights=config.weights,
            transport=config.transport,
            is_off_policy=config.corrects_importance,
        )
        return RayRank(actor, f"learner rank {number}")

    def tell(kind: str, who: str, detail: str, seconds: float | None = None) -> None:
        on_event(Event(kind=cast(Any, kind), who=who, detail=detail, seconds=seconds))

    return LearnerGroup(config.learner, start_rank, _start_holder, list_nodes=_list_nodes, desired=desired, tell=tell)


def _start_holder(node: str) -> RayHolder:
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    actor = ray.remote(HolderHost).options(num_cpus=0, scheduling_strategy=strategy).remote()
    return RayHolder(actor, f"holder of the learner's state on node {node[:8]}")


async def _list_nodes() -> list[str]:
    nodes = await asyncio.to_thread(ray.nodes)
    return [node["NodeID"] for node in nodes if node["Alive"]]
