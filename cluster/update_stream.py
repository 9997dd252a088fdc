"""Learns from the groups of a step, as they come or all at the end.

On-policy, the groups of a batch become ready one by one, and the last ones take long. With `learner.stream` the
collector hands each over as it joins the batch, and the learner works on those that are there while others are still
played or judged. Order, mini-batches and normaliser are those of the whole batch, so that only rounding differs.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import TracebackType
from typing import Self

from cluster.step import ScoredGroup, StepBatch
from judge.limits import loop_time
from learner.group import LearnerGroup
from learner.update import UpdateReport


class UpdateStream:
    """The updates of a run, one per entered context.

    An error of the learner cancels the body and is raised in its place. Leaving early cancels the update; the next one
    begins without its gradients.

    Args:
        min_groups: the learner waits for so many before it begins on them, unless no more will come.
    """

    def __init__(self, learner: LearnerGroup, *, min_groups: int) -> None:
        self._learner = learner
        self._min_groups = min_groups

    async def __aenter__(self) -> Self:
        self._groups: list[ScoredGroup] = []
        """Of the batch so far."""
        self._is_whole = False
        self._changed = asyncio.Event()
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        self._update = self._tasks.create_task(self._learn(), name="update")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._update.cancel()  # unless it is finished
        try:
            await self._tasks.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group.exceptions[0].__cause__

    def add(self, group: ScoredGroup) -> None:
        """A group has joined the batch, after those added before."""
        self._groups.append(group)
        self._changed.set()

    async def finish(self, batch: StepBatch) -> UpdateReport:
        """Learn from all groups of the batch that were not added.

        Raises:
            LearnerError: a rank failed or was late.
        """
        started = loop_time()
        for group in batch.trained[len(self._groups) :]:
            self.add(group)
        assert tuple(self._groups) == batch.trained, "groups are added in the order of their batch"
        self._is_whole = True
        self._changed.set()
        report = await self._update
        return replace(report, metrics={**report.metrics, "time/update_wait_s": loop_time() - started})

    async def _learn(self) -> UpdateReport:
        self._learner.begin()
        num_learned = 0
        while True:
            while not self._is_whole and len(self._groups) - num_learned < self._min_groups:
                self._changed.clear()
                await self._changed.wait()
            groups = self._groups[num_learned:]
            if not groups:
                return await self._learner.finish()
            await self._learner.learn([group.training for group in groups])
            num_learned += len(groups)
