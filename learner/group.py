"""The learner ranks as seen from the driver: one call per stage, one result or one error.

Ranks are plain actors that receive their share of each batch, not Ray Train workers that pull it. Ray Train's
elastic `num_workers=(min, max)` restarts a training function that owns the loop; here the loop belongs to
`cluster/train.py`, where an update ends in one awaited call between rollouts and weight sync, and an error in any rank
is an exception there. A pull-based function would need queues in both directions, its own error channel, and a way to
regain control of the loop at a resize. Elasticity needs no framework here: checkpoints are independent of the number of
ranks (`learner.state`) and every batch is planned separately (`learner.plan`), so a resize is: save, drop the ranks,
start another number of them, load.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from actors.errors import LearnerError
from actors.weights.layout import SentWeights, WeightLink
from configs.learner import LearnerConfig
from learner.batch import TrainingGroup
from learner.memory import learns_in_rounds
from learner.pictures import Picture, pictures_of
from learner.plan import RankPlan, plan_mini_batches
from learner.update import UpdateReport

T = TypeVar("T")


class Rank(Protocol):
    """A remote `learner.worker.LearnerRank`. All methods raise LearnerError if the rank is dead."""

    async def rendezvous(self) -> tuple[str, int]: ...
    async def start(self, address: str, port: int) -> None: ...
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
    async def save(self, folder: str) -> None: ...
    async def load(self, folder: str) -> int: ...
    async def shutdown(self) -> None: ...


StartRank = Callable[[int, int], Rank]
"""(rank, world size) -> the rank."""


class LearnerGroup:
    """The learner of a run."""

    def __init__(self, config: LearnerConfig, start_rank: StartRank) -> None:
        self._config = config
        self._start_rank = start_rank
        self._ranks: list[Rank] = []
        self._optimizer_step = 0
        self._num_groups = 0
        """Of the current update so far."""

    @property
    def version(self) -> int:
        """Of the weights: optimizer steps applied so far."""
        return self._optimizer_step

    async def start(self) -> None:
        """Start the ranks; they rendezvous at an address of rank 0's machine."""
        world_size = self._config.num_ranks
        self._ranks = [self._start_rank(rank, world_size) for rank in range(world_size)]
        async with _deadline(self._config.update_timeout_s, "start"):
            address, port = await self._ranks[0].rendezvous()
            await _gather([rank.start(address, port) for rank in self._ranks])

    async def update(self, groups: Sequence[TrainingGroup]) -> UpdateReport:
        """Train on these groups, in mini-batches of `prompts_per_mini_batch`. Without groups nothing changes."""
        async with _deadline(self._config.update_timeout_s, "update"):
            self.begin()
            if groups:
                await self._learn(groups)
            return await self._finish()

    def begin(self) -> None:
        """Begin an update in parts; gradients of one that was not finished are dropped."""
        self._num_groups = 0

    async def learn(self, groups: Sequence[TrainingGroup]) -> None:
        """Train on the next groups of the update, with an optimizer step for each mini-batch that is full.

        The mini-batches are those of `update`, whatever the parts. Off-policy, an update of several mini-batches has
        one part only, because its loss needs the policy before the first step.
        """
        async with _deadline(self._config.update_timeout_s, "learn"):
            await self._learn(groups)

    async def finish(self) -> UpdateReport:
        """Finish the update, with a step for a last mini-batch that has fewer groups; reports on all of its parts."""
        async with _deadline(self._config.update_timeout_s, "finish"):
            return await self._finish()

    async def _learn(self, groups: Sequence[TrainingGroup]) -> None:
        plans = plan_mini_batches(
            groups,
            prompts_per_mini_batch=self._config.prompts_per_mini_batch,
            num_ranks=len(self._ranks),
            max_tokens_per_micro_batch=self._config.max_tokens_per_micro_batch,
            max_tokens_per_vision_pass=self._config.max_tokens_per_vision_pass,
            num_before=self._num_groups % self._config.prompts_per_mini_batch,
            in_rounds=learns_in_rounds(self._config),
        )
        if not self._num_groups:
            await _gather([rank.begin() for rank in self._ranks])
        self._num_groups += len(groups)
        calls = [rank.learn(plan, pictures_of(plan, groups)) for rank, plan in zip(self._ranks, plans, strict=True)]
        self._optimizer_step = (await _gather(calls))[0]

    async def _finish(self) -> UpdateReport:
        if not self._num_groups:
            return UpdateReport(
                start_version=self._optimizer_step,
                optimizer_step=self._optimizer_step,
                num_tokens=0,
                seconds=0.0,
                metrics={},
            )
        reports = await _gather([rank.finish() for rank in self._ranks])
        self._optimizer_step = reports[0].optimizer_step
        return reports[0]

    async def open_weights(self, num_receivers: int) -> WeightLink:
        """Prepare to send weights to this number of receiving processes."""
        async with _deadline(self._config.update_timeout_s, "open_weights"):
            return await self._ranks[0].open_weights(num_receivers)

    async def join_weights(self) -> None:
        """Meet the receivers, which connect at the same time."""
        async with _deadline(self._config.update_timeout_s, "join_weights"):
            await self._ranks[0].join_weights()

    async def send_weights(self) -> SentWeights:
        """Send the weights under version = optimizer step."""
        async with _deadline(self._config.update_timeout_s, "send_weights"):
            sent = (await _gather([rank.send_weights() for rank in self._ranks]))[0]
        assert sent is not None, "rank 0 sends the weights"
        return sent

    def read_weights(self, bucket: int) -> object:
        """Handle of a bucket of the version sent last; its bytes go directly to the receiver."""
        return self._ranks[0].read_weights(bucket)

    async def release_weights(self) -> None:
        """Free what the receivers have fetched."""
        async with _deadline(self._config.update_timeout_s, "release_weights"):
            await self._ranks[0].release_weights()

    async def close_weights(self) -> None:
        """Leave the receivers."""
        async with _deadline(self._config.update_timeout_s, "close_weights"):
            await self._ranks[0].close_weights()

    async def save(self, folder: Path) -> None:
        """Write the learner's state into a folder that rank 0 can reach."""
        async with _deadline(self._config.update_timeout_s, "save"):
            await _gather([rank.save(str(folder.resolve())) for rank in self._ranks])

    async def load(self, folder: Path) -> None:
        """Take over a saved state."""
        async with _deadline(self._config.update_timeout_s, "load"):
            steps = await _gather([rank.load(str(folder.resolve())) for rank in self._ranks])
        self._optimizer_step = steps[0]

    async def export_hf(self, folder: Path) -> None:
        """Write a model folder that vLLM and transformers load."""
        async with _deadline(self._config.update_timeout_s, "export_hf"):
            await _gather([rank.export_hf(str(folder.resolve())) for rank in self._ranks])

    async def shutdown(self) -> None:
        async with _deadline(self._config.update_timeout_s, "shutdown"):
            await _gather([rank.shutdown() for rank in self._ranks])


async def _gather(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Results of all ranks, or the first error without waiting for the others."""
    tasks = [asyncio.create_task(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


@asynccontextmanager
async def _deadline(seconds: float, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise LearnerError(f"the learner's {what} took more than {seconds:g} s") from error
