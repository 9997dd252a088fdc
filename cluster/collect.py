"""Turns prompts into batches of scored groups. No group waits for another.

Zero-variance groups are dropped and replaced by another prompt (dynamic sampling, DAPO), up to a limit. Groups whose
episodes or verdicts were lost to failures are counted and replaced in the same way; too many of them stop the run.

As far as staleness allows, groups of the next batch are started while the last ones of this batch are still generated
or judged: otherwise engines would idle until the slowest group and the slowest judge are done. If this batch needs
another group after all, it takes the oldest of those. A batch is therefore always a contiguous range of the cursor's
order, and a checkpoint only needs the cursor position after its batch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from actors.data.dataset import CursorState, PromptCursor, SkipLedger
from actors.episode import SampleRef
from actors.errors import RunError
from cluster.fleet import Fleet
from cluster.judging.watch import JudgeWatch
from cluster.score import roll_out, score_group
from cluster.staleness import PublishedVersions, staleness_fault
from cluster.step import LostGroup, ScoredGroup, StepBatch
from cluster.waits import VerdictWait
from configs.schema import Config
from judge.limits import loop_time


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draw:
    """A drawn prompt and the task that produces its group."""

    ref: SampleRef
    cursor: CursorState
    """The cursor after this prompt."""
    group: asyncio.Task[ScoredGroup | LostGroup]


class Collector:
    """Collects the batches of a run, one per `collect`. Leaving the context cancels whatever is in progress.

    Args:
        last_step: last finished step of the run before the first batch.
        on_trained: called with each group that has joined the batch in progress, in the order of the batch.
        on_group: called for each finished group; `on_batch` for each finished batch.
    """

    def __init__(
        self,
        fleet: Fleet,
        config: Config,
        *,
        prompts: PromptCursor,
        skips: SkipLedger,
        judge_watch: JudgeWatch,
        published: PublishedVersions,
        last_step: int,
        on_trained: Callable[[ScoredGroup], None] | None = None,
        on_group: Callable[[], None] = lambda: None,
        on_batch: Callable[[], None] = lambda: None,
    ) -> None:
        self._fleet = fleet
        self._config = config
        self._prompts = prompts
        self._skips = skips
        self._judge_watch = judge_watch
        self._published = published
        self._last_step = last_step
        self._on_trained = on_trained
        self._on_group = on_group
        self._on_batch = on_batch
        self._wanted = config.train.prompts_per_step
        self._num_begun = 0
        self._num_allowed = 0
        self._num_playing = 0
        self._ahead: deque[_Draw] = deque()
        """Drawn for the batch after the current one, oldest first."""
        self._wait = VerdictWait(loop_time)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _cancel_all([draw.group for draw in self._ahead])
        self._ahead.clear()

    def allow(self, num_batches: int) -> None:
        """Allow rollouts for this many batches in total since the start; never decreases."""
        self._num_allowed = num_batches
        self._play_ahead()

    async def collect(self) -> StepBatch:
        """The next batch: draws prompts until enough groups have a signal, or `train.max_draws` is reached.

        Raises:
            RunError: too many groups were lost, no worker is left, or the judge fails its canaries.
            JudgeError: an outage of the judges outlasted its limit.
            DataError: too many rows are unusable.
        """
        self._num_begun += 1
        started, waited_s = loop_time(), self._wait.seconds
        most = int(self._config.train.max_draws * self._wanted)
        trained: list[ScoredGroup] = []
        without_signal: list[ScoredGroup] = []
        lost: list[LostGroup] = []
        drawn: list[_Draw] = []
        done: set[asyncio.Task[ScoredGroup | LostGroup]] = set()
        pending: set[asyncio.Task[ScoredGroup | LostGroup]] = set()
        try:
            while len(trained) < self._wanted:
                missing = min(self._wanted - len(trained) - len(pending), most - len(drawn))
                draws = self._take(missing)
                drawn += draws
                pending |= {draw.group for draw in draws}
                if not pending:
                    break
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                self._judge_watch.check()
                for group in (self._checked(task.result()) for task in done):
                    self._on_group()
                    match group:
                        case LostGroup():
                            lost.append(group)
                            check_losses(lost, len(drawn), self._config)
                        case ScoredGroup() if group.has_signal(self._config):
                            trained.append(group)
                            if self._on_trained is not None:
                                self._on_trained(group)
                        case ScoredGroup():
                            without_signal.append(group)
        finally:
            # One cause may fail several groups at once: the first error is raised, the others are discarded.
            await _cancel_all([*done, *pending])
        self._judge_watch.ask_replicas()
        self._on_batch()
        return StepBatch(
            trained=tuple(trained),
            without_signal=tuple(without_signal),
            lost=tuple(lost),
            drawn=tuple(draw.ref for draw in drawn),
            cursor=drawn[-1].cursor,
            seconds=loop_time() - started,
            judge_wait_s=self._wait.seconds - waited_s,
        )

    def _checked(self, group: ScoredGroup | LostGroup) -> ScoredGroup | LostGroup:
        """The group, or its loss if it is too old for the current batch."""
        if isinstance(group, LostGroup):
            return group
        most = self._config.train.max_staleness
        fault = staleness_fault(group.played, self._num_begun - 1, self._published, most)
        return group if fault is None else LostGroup(ref=group.played.ref, reason=fault, is_skipped_row=False)

    def _take(self, num_groups: int) -> list[_Draw]:
        """Groups for the current batch; those drawn ahead come first, in order."""
        step = self._last_step + self._num_begun
        taken = [self._ahead.popleft() if self._ahead else self._draw(step) for _ in range(num_groups)]
        self._play_ahead()
        return taken

    def _play_ahead(self) -> None:
        """Keep one batch worth of rollouts in flight, from the batches that may be started."""
        room = (self._num_allowed - self._num_begun) * self._wanted - len(self._ahead)
        for _ in range(min(room, self._wanted - self._num_playing)):
            step = self._last_step + self._num_begun + 1 + len(self._ahead) // self._wanted
            self._ahead.append(self._draw(step))

    def _draw(self, step: int) -> _Draw:
        """Start the next prompt's group."""
        (ref,) = self._prompts.take(1)
        self._num_playing += 1
        group = asyncio.create_task(self._score(ref, step))
        return _Draw(ref=ref, cursor=self._prompts.state(), group=group)

    async def _score(self, ref: SampleRef, step: int) -> ScoredGroup | LostGroup:
        """Play and judge a group.

        Args:
            step: the step it was drawn for; the step before may take it.
        """
        with self._wait.playing():
            group = await roll_out(self._fleet, self._config, ref, step, self._skips)
        self._num_playing -= 1
        self._play_ahead()
        if isinstance(group, LostGroup):
            return group
        self._judge_watch.send_canary(step, ref.uid)
        with self._wait.judging():
            return await score_group(self._fleet, self._config, group)


async def _cancel_all(groups: Sequence[asyncio.Task[ScoredGroup | LostGroup]]) -> None:
    for group in groups:
        group.cancel()
    await asyncio.gather(*groups, return_exceptions=True)


def check_losses(lost: list[LostGroup], num_drawn: int, config: Config) -> None:
    """Stop the run when failures cost a step more groups than the config allows. Unusable rows have their own limit."""
    failed = [group for group in lost if not group.is_skipped_row]
    if len(failed) > max(1.0, config.train.max_lost_fraction * num_drawn):
        raise RunError(
            f"{len(failed)} of {num_drawn} groups were lost in one step, more than train.max_lost_fraction="
            f"{config.train.max_lost_fraction}; the last one: {failed[-1].reason}"
        )
