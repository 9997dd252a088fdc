"""The learner as seen from the driver: one call per stage, one result or one error.

Lost, wedged and new ranks are dealt with inside of it (`learner.elastic.formation`): a caller sees that a call took
longer, and receivers of weights that `generation` has changed.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from actors.errors import CheckpointError, LearnerError, WeightSyncError
from actors.weights.layout import SentWeights, WeightLink
from configs.learner import LearnerConfig
from configs.ranges import Range
from judge.limits import loop_time
from learner.batches.batch import TrainingGroup
from learner.batches.pictures import pictures_of
from learner.batches.plan import RankPlan, plan_mini_batches
from learner.elastic.attempt import AttemptFailedError
from learner.elastic.copies import Copies, ListNodes, StartHolder
from learner.elastic.decisions import RankView
from learner.elastic.formation import Formation
from learner.elastic.history import Update, UpdateLog
from learner.elastic.members import Members
from learner.elastic.remote import Rank, StartRank, Tell
from learner.memory import learns_in_rounds
from learner.state.share_files import WrittenShare
from learner.update import UpdateReport

T = TypeVar("T")

ANSWER_S = 10.0
"""For an answer to arrive, beyond the time that the call itself was given."""


async def _no_other_nodes() -> Sequence[str]:
    return []


class LearnerGroup:
    """The learner of a run.

    Args:
        desired: how many ranks there may be, if not `config.ranks`; asked between updates.
        tell: is told what happens to members.
    """

    def __init__(
        self,
        config: LearnerConfig,
        start_rank: StartRank,
        start_holder: StartHolder,
        *,
        list_nodes: ListNodes = _no_other_nodes,
        desired: Callable[[], Range] | None = None,
        tell: Tell = lambda kind, who, detail, seconds=None: None,
    ) -> None:
        self._config = config
        self._log = UpdateLog()
        self._tell = tell
        desired = desired or (lambda: config.ranks)
        members = Members(start_rank, desired, tell, config.num_spares)
        self._formation = Formation(
            config,
            members,
            Copies(members, start_holder, list_nodes),
            desired=desired,
            tell=tell,
            log=self._log,
            replay=self._replay,
        )
        self._link_generation = 0
        """Of the group that the receivers of weights are connected to."""

    @property
    def version(self) -> int:
        """Of the weights: optimizer steps applied so far."""
        return self._formation.step

    @property
    def generation(self) -> int:
        """Counts the groups of ranks so far; receivers of weights must connect to each anew."""
        return self._formation.generation

    @property
    def num_ranks(self) -> int:
        """Ranks that serve at present."""
        return len(self._formation.serving)

    def members(self) -> list[RankView]:
        """All members: those that serve, are up, or were asked for."""
        return self._formation.views()

    async def start(self) -> None:
        """Start with the ranks that are up, at least the fewest; they rendezvous at an address of rank 0's machine."""
        await self._formation.start()

    async def update(self, groups: Sequence[TrainingGroup]) -> UpdateReport:
        """Train on these groups, in mini-batches of `prompts_per_mini_batch`. Without groups nothing changes."""
        self.begin()
        if groups:
            await self.learn(groups)
        return await self.finish()

    def begin(self) -> None:
        """Begin an update in parts; gradients of one that was not finished are dropped."""
        self._log.begin()

    async def learn(self, groups: Sequence[TrainingGroup]) -> None:
        """Train on the next groups of the update, with an optimizer step for each mini-batch that is full.

        The mini-batches are those of `update`, whatever the parts. Off-policy, an update of several mini-batches has
        one part only, because its loss needs the policy before the first step.

        Raises:
            LearnerError: too few ranks are there, or the same part failed again and again.
        """
        update, attempts = self._log.current, itertools.count()

        async def attempt() -> None:
            if next(attempts):
                self._tell("replay", "learner", f"{len(groups)} groups that were in flight")
            await self._learn(groups, num_before=update.num_groups)

        await self._formation.until_done(attempt, may_resize=not update.parts)
        update.parts.append(groups)

    async def finish(self) -> UpdateReport:
        """Finish the update, with a step for a last mini-batch that has fewer groups; reports on all of its parts."""
        update = self._log.current
        if not update.parts:
            return UpdateReport(
                start_version=self.version, optimizer_step=self.version, num_tokens=0, seconds=0.0, metrics={}
            )
        report = await self._formation.until_done(self._finish)
        update.is_finished = True
        await self._formation.finished()
        return report

    async def _learn(self, groups: Sequence[TrainingGroup], *, num_before: int) -> None:
        formation = self._formation
        plans = plan_mini_batches(
            groups,
            prompts_per_mini_batch=self._config.prompts_per_mini_batch,
            num_ranks=self.num_ranks,
            max_tokens_per_micro_batch=self._config.max_tokens_per_micro_batch,
            max_tokens_per_vision_pass=self._config.max_tokens_per_vision_pass,
            num_before=num_before % self._config.prompts_per_mini_batch,
            in_rounds=learns_in_rounds(self._config),
            objective=self._config.chosen_objective,
        )
        if not num_before:
            await formation.call("begin", lambda rank: rank.begin(), must_move=True)
        calls = [_learn_on(member.rank, plan, groups) for member, plan in zip(formation.serving, plans, strict=True)]
        formation.step = (await formation.call_each("learn", formation.serving, calls, must_move=True))[0]

    async def _finish(self) -> UpdateReport:
        reports = await self._formation.call("finish", lambda rank: rank.finish(), must_move=True)
        self._formation.step = reports[0].optimizer_step
        return reports[0]

    async def _replay(self, updates: Sequence[Update]) -> None:
        """Do again what was done since the state that was restored."""
        started, parts = loop_time(), sum(len(update.parts) for update in updates)
        for update in updates:
            num_before = 0
            for groups in update.parts:
                await self._learn(groups, num_before=num_before)
                num_before += len(groups)
            if update.is_finished:
                await self._finish()
        if parts:
            what = f"{sum(update.num_groups for update in updates)} groups in {parts} parts"
            self._tell("replay", "learner", what, loop_time() - started)

    async def open_weights(self, num_receivers: int) -> WeightLink:
        """Prepare to send weights to this number of receiving processes."""

        def open_weights(rank: Rank) -> Coroutine[Any, Any, WeightLink]:
            return rank.open_weights(num_receivers)

        link = await self._formation.until_done(lambda: self._first("open", open_weights))
        self._link_generation = self.generation
        return link

    async def join_weights(self) -> None:
        """Meet the receivers, which connect at the same time.

        Raises:
            WeightSyncError: ranks have changed; open anew.
        """
        await self._linked(lambda: self._first("join", lambda rank: rank.join_weights()))

    async def send_weights(self) -> SentWeights:
        """Send the weights under version = optimizer step.

        Raises:
            WeightSyncError: they did not get through, or ranks have changed: open anew.
        """
        sent = await self._linked(lambda: self._formation.call("send_weights", lambda rank: rank.send_weights()))
        assert sent[0] is not None, "rank 0 sends the weights"
        return sent[0]

    def read_weights(self, bucket: int) -> object:
        """Handle of a bucket of the version sent last; its bytes go directly to the receiver."""
        return self._formation.serving[0].rank.read_weights(bucket)

    async def release_weights(self) -> None:
        """Free what the receivers have fetched."""
        await self._linked(lambda: self._first("release", lambda rank: rank.release_weights()))

    async def close_weights(self) -> None:
        """Leave the receivers. If ranks were lost, the others form a group first."""
        await self._formation.ready()
        if self._link_generation == self.generation:
            await self._formation.until_done(lambda: self._first("close", lambda rank: rank.close_weights()))

    async def snapshot(self) -> None:
        """Copy the state to the ranks' host memory, from where it can be saved while they learn on."""
        await self._again("snapshot", lambda rank: rank.snapshot())

    async def begin_save(self, url: str, folder: str, version: int) -> None:
        """Let each rank write its part of the snapshot of a version, in the background, also in the midst of an update.

        Args:
            url: a storage that all ranks reach.
            folder: of the checkpoint in progress.

        Raises:
            CheckpointError: a rank has no such snapshot, or is gone.
        """
        await self._beside(
            "begin_save", self._config.update_timeout_s, lambda rank: rank.begin_save(url, folder, version)
        )

    async def finish_save(self, timeout_s: float) -> list[WrittenShare]:
        """Wait until all ranks have written, or failed to: then none of them writes any more.

        Raises:
            CheckpointError: a rank could not write, or not in time, or is gone.
        """
        return await self._beside("finish_save", timeout_s + ANSWER_S, lambda rank: rank.finish_save(timeout_s))

    async def load(self, url: str, folder: str) -> None:
        """Take over the state of a checkpoint.

        Raises:
            CheckpointError: it is damaged, or of another model; no rank has changed.
        """
        await self._formation.load(lambda rank: rank.load(url, folder))

    async def export_hf(self, folder: Path) -> None:
        """Write a model folder that vLLM and transformers load."""
        await self._again("export_hf", lambda rank: rank.export_hf(str(folder.resolve())))

    async def shutdown(self) -> None:
        await self._formation.close()
        try:
            await self._formation.call("shutdown", lambda rank: rank.shutdown())
        except AttemptFailedError:
            return  # what is gone needs no farewell

    async def _beside(self, what: str, timeout_s: float, call: Callable[[Rank], Coroutine[Any, Any, T]]) -> list[T]:
        """On all ranks, beside whatever they do; a lost one costs the checkpoint and shows in the next call."""
        try:
            async with asyncio.timeout(timeout_s):
                found = await asyncio.gather(
                    *(call(member.rank) for member in self._formation.serving), return_exceptions=True
                )
        except TimeoutError as error:
            raise CheckpointError(f"the learner's {what} took more than {timeout_s:g} s") from error
        for each in found:
            if isinstance(each, LearnerError):
                raise CheckpointError(f"the learner's {what}: {each}") from each
            if isinstance(each, BaseException):
                raise each
        return [each for each in found if not isinstance(each, BaseException)]

    async def _again(self, what: str, call: Callable[[Rank], Coroutine[Any, Any, T]]) -> list[T]:
        """On all ranks, and once more where some were lost meanwhile."""
        return await self._formation.until_done(lambda: self._formation.call(what, call))

    async def _first(self, what: str, call: Callable[[Rank], Coroutine[Any, Any, T]]) -> T:
        """On the first rank alone, which knows the receivers."""
        first = self._formation.serving[:1]
        return (await self._formation.call_each(f"{what}_weights", first, [call(first[0].rank)]))[0]

    async def _linked(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """With the group that the receivers are connected to."""
        await self._formation.ready()
        if self._link_generation != self.generation:
            raise WeightSyncError("the learner's ranks have changed: its receivers must connect anew")
        try:
            return await work()
        except AttemptFailedError as error:
            self._formation.failed(error)
            raise WeightSyncError(f"the learner lost ranks while it sent: {error}") from error


async def _learn_on(rank: Rank, plan: RankPlan, groups: Sequence[TrainingGroup]) -> int:
    return await rank.learn(plan, pictures_of(plan, groups))
