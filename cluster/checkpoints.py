"""Checkpoints of a run: learner state and data position, saved beside the loop and restored together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from actors.data.dataset import CursorState, PromptCursor
from actors.errors import CheckpointError, LearnerError, RunError
from cluster.folders import checkpoints_url
from cluster.identity import Identity, check_identity
from cluster.judging.watch import JudgeWatch
from cluster.records.events import Event, OnEvent
from configs.schema import Config
from learner.group import LearnerGroup
from learner.state.checkpoint import CheckpointFolder, checkpoint_name, step_of, write_json
from learner.state.share_files import complete_state

STATE = "state.json"
WHO = "checkpoints"
CLOSE_S = 20.0
"""How long the end of a run waits for a checkpoint that is being written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedStep:
    """A step whose learner state is in the ranks' memory, and everything else that a checkpoint of it holds."""

    step: int
    version: int
    state: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverParts:
    """What the driver's part of a checkpoint is taken from, and restored to."""

    identity: Identity
    prompts: PromptCursor
    judge_watch: JudgeWatch


def read_state(checkpoints: CheckpointFolder, name: str) -> dict[str, Any]:
    """The driver's part of a checkpoint: everything except the learner state.

    Raises:
        CheckpointError: it cannot be read.
    """
    return checkpoints.read_json(name, STATE)


class Checkpoints:
    """Writes and restores the state of one run (rules F and G of the reliability rules).

    After each step the learner's state is copied to the ranks' host memory, which is all that the loop waits for. The
    ranks write a checkpoint from there, so that the last finished step can be saved at any moment, in the midst of an
    update too. A checkpoint that cannot be written is an event; the run goes on to the next one.

    Args:
        before_save: raises where this driver must not write, because another one has taken the run.
    """

    def __init__(
        self,
        config: Config,
        learner: LearnerGroup,
        driver: DriverParts,
        *,
        on_event: OnEvent,
        say: Callable[[str], None],
        warn: Callable[[str], None],
        before_save: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder = CheckpointFolder(checkpoints_url(config))
        self._config = config.train
        self._copies_every_step = config.learner.copy_state
        self._learner = learner
        self._driver = driver
        self._on_event = on_event
        self._say = say
        self._warn = warn
        self._before_save = before_save
        self._last: FinishedStep | None = None
        self._saved_step: int | None = None
        self._save: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._num_failed = 0

    async def restore(self) -> int:
        """Restore the newest checkpoint that is whole; returns its step.

        Raises:
            CheckpointError: it belongs to another run, or none is whole.
        """
        names = await asyncio.to_thread(self._folder.list)
        for name in reversed(names):
            flaw = await asyncio.to_thread(self._folder.find_flaw, name, reads_tensors=False)
            if flaw is None:
                state = read_state(self._folder, name)
                check_identity(state["identity"], self._driver.identity)
                try:
                    await self._learner.load(self._folder.url, name)
                except CheckpointError as error:  # each rank verifies what it reads
                    flaw = str(error)
                else:
                    self._take_over(state)
                    self._say(f"resumed from {name}")
                    return step_of(name)
            self._warn(f"{name} fails verification: {flaw}")
        raise CheckpointError(f"{self._folder.url} has no valid checkpoint: give --restart to start from step 0")

    def _take_over(self, state: dict[str, Any]) -> None:
        self._driver.prompts.restore(CursorState(**state["cursor"]))
        self._driver.judge_watch.restore(state["judge"])
        self._saved_step = state["step"]

    async def reached(self, step: int, cursor: CursorState) -> None:
        """After every finished step: copy the learner's state, and begin to save it where a checkpoint is due.

        Raises:
            CheckpointError: `train.max_failed_saves` checkpoints in a row could not be written.
            RunError: another driver has taken the run.
        """
        is_due = step % self._config.checkpoint_every == 0 or step == self._config.num_steps
        if not (is_due or self._copies_every_step):
            return
        started_at = time.monotonic()
        await self._learner.snapshot()
        self._last = FinishedStep(step=step, version=self._learner.version, state=self._state(step, cursor))
        if is_due:
            await self._begin(self._last, started_at)

    async def save_last(self) -> int | None:
        """Save the last finished step, unless it is saved already; returns the step of the newest checkpoint, if any.

        May be called at any moment, from another task than the loop's. Ends when the checkpoint is written, or could
        not be: see the events.
        """
        if self._last is not None:
            await self._begin(self._last, time.monotonic())
        await self._settle()
        return self._saved_step

    async def close(self) -> None:
        """Let a checkpoint that is being written become complete, if it does so soon."""
        if self._save is not None:
            await asyncio.wait([self._save], timeout=CLOSE_S)
            self._save.cancel()
            await asyncio.gather(self._save, return_exceptions=True)

    def _state(self, step: int, cursor: CursorState) -> dict[str, Any]:
        return {
            "step": step,
            "saved_at": time.time(),
            "cursor": asdict(cursor),
            "identity": asdict(self._driver.identity),
            "judge": self._driver.judge_watch.totals(),
        }

    async def _begin(self, finished: FinishedStep, started_at: float) -> None:
        """Wait for the save before this one, then let the ranks begin to write; the rest goes on beside the loop."""
        async with self._turn:
            await self._settle()
            self._before_save()
            if self._saved_step is not None and self._saved_step >= finished.step:
                return
            begun = asyncio.Event()
            self._save = asyncio.create_task(self._save_step(finished, begun, started_at))
            await begun.wait()

    async def _settle(self) -> None:
        """Wait for the save in progress, which has a deadline of its own."""
        if self._save is not None:
            await asyncio.wait([self._save])
            if not self._save.cancelled():
                self._save.result()  # a bug in it stops the run
        if 0 < self._config.max_failed_saves <= self._num_failed:
            raise CheckpointError(
                f"{self._num_failed} checkpoints in a row could not be written to {self._folder.url} "
                f"(train.max_failed_saves={self._config.max_failed_saves}): see the events for the reasons"
            )

    async def _save_step(self, finished: FinishedStep, begun: asyncio.Event, started_at: float) -> None:
        limit_s = self._config.save_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                folder = await asyncio.to_thread(self._folder.begin, finished.step)
                await self._learner.begin_save(self._folder.url, folder, finished.version)
                stalled_s = time.monotonic() - started_at
                begun.set()
                shares = await self._learner.finish_save(limit_s)
                files = await asyncio.to_thread(complete_state, shares, self._folder.storage, folder)
                files[STATE] = await asyncio.to_thread(
                    write_json, self._folder.storage, f"{folder}/{STATE}", finished.state
                )
                self._before_save()
                await asyncio.to_thread(self._folder.seal, finished.step, files)
        except TimeoutError:
            await self._give_up(finished.step, f"not written within train.save_timeout_s={limit_s:g}")
        except (CheckpointError, LearnerError, RunError) as error:
            await self._give_up(finished.step, str(error))
        else:
            self._saved_step, self._num_failed = finished.step, 0
            size = sum(file.bytes for file in files.values()) / 1e6
            seconds = time.monotonic() - started_at
            detail = f"{size:.0f} MB in {seconds:.1f} s, of which the loop waited {stalled_s:.2f} s"
            self._add_event("save", finished.step, f"{checkpoint_name(finished.step)}: {detail}")
            await self._prune(finished.step)
        finally:
            begun.set()

    async def _give_up(self, step: int, reason: str) -> None:
        self._num_failed += 1
        await asyncio.to_thread(self._folder.discard, step)
        self._add_event("save_failed", step, f"{reason}; the run goes on with its earlier checkpoints")

    async def _prune(self, step: int) -> None:
        keep, keep_every = self._config.keep_checkpoints, self._config.keep_checkpoint_every
        try:
            await asyncio.to_thread(self._folder.prune, newest=step, keep=keep, keep_every=keep_every)
        except CheckpointError as error:
            self._add_event("save_failed", step, str(error))

    def _add_event(self, kind: Any, step: int, detail: str) -> None:
        self._on_event(Event(kind=kind, who=WHO, detail=detail, step=step))
