"""Writes RUN/status.json about once a second where something changed, and answers `visionthink scale`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.records.events import Event, OnEvent
from cluster.status.files import HEARTBEAT_S, Snapshot, write_snapshot
from cluster.status.scaling import ScaleRequest, SizeDesk, read_request
from cluster.status.views import RunState, RunStatus

TICK_S = 1.0
LAST_WORDS_S = 5.0
"""For the last status, where the disk does not answer."""
LONGEST_CAUSE = 2000
"""Characters."""

Assemble = Callable[[RunState, str], RunStatus]
"""(state, cause) -> the status now."""


class StatusWriter:
    """A task beside the run, from its start to its end. A full disk costs the status, not the run.

    Args:
        on_status: called with each status that differs from the one before.
    """

    def __init__(
        self,
        folder: Path,
        *,
        assemble: Assemble,
        desk: SizeDesk,
        on_event: OnEvent,
        on_status: Callable[[RunStatus], None],
        warn: Callable[[str], None],
    ) -> None:
        self.state: RunState = "starting"
        self._folder = folder
        self._assemble = assemble
        self._desk = desk
        self._on_event = on_event
        self._on_status = on_status
        self._warn = warn
        self._beat = 0
        self._last: RunStatus | None = None
        self._written_at = 0.0
        self._is_failing = False
        self._is_stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.tick()
        self._task = asyncio.create_task(self._run(), name="status")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write how the run ended. An error of the task is raised, unless the run has one of its own."""
        assert self._task is not None, "entered"
        self._is_stopping.set()  # not cancelled: its thread would go on, and write after us
        await asyncio.wait([self._task], timeout=LAST_WORDS_S)
        self._task.cancel()
        self.state, cause = end_of(error)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await self._write(self._assemble(self.state, cause))
        if error is None:
            self.check()

    def check(self) -> None:
        """Raise what ended the task."""
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()

    async def _run(self) -> None:
        while not self._is_stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._is_stopping.wait()
            await self.tick()

    async def tick(self) -> None:
        """Answer a request for other sizes, then write the status if it changed or a beat is due."""
        if request := await asyncio.to_thread(read_request, self._folder):
            await self._answer(request)
        status = self._assemble(self.state, "")
        is_new = status != self._last
        if is_new or time.monotonic() - self._written_at >= HEARTBEAT_S:
            await self._write(status)
        if is_new:
            self._on_status(status)

    async def _answer(self, request: ScaleRequest) -> None:
        answer = await asyncio.to_thread(self._desk.consider, request)
        if answer is None:
            return
        self._on_event(Event(kind="scale", who="run", detail=answer.line()))

    async def _write(self, status: RunStatus) -> None:
        self._beat += 1
        snapshot = Snapshot(
            status=status, written_at=time.time(), beat=self._beat, host=socket.gethostname(), pid=os.getpid()
        )
        self._last, self._written_at = status, time.monotonic()
        with contextlib.suppress(FileNotFoundError):  # the folder was moved away under a living run
            try:
                await asyncio.to_thread(write_snapshot, self._folder, snapshot)
            except OSError as error:
                self._fail(error)
            else:
                self._is_failing = False

    def _fail(self, error: OSError) -> None:
        if not self._is_failing:  # else a line per second
            self._warn(f"the status in {self._folder} cannot be written: {error.strerror or error}")
        self._is_failing = True


def end_of(error: BaseException | None) -> tuple[RunState, str]:
    """How a run ended, and why."""
    if error is None:
        return "ended", ""
    if isinstance(error, KeyboardInterrupt | asyncio.CancelledError):
        return "stopped", str(error) or "interrupted"
    if isinstance(error, SystemExit):
        return "stopped", f"exit code {error.code}"
    if isinstance(error, BaseExceptionGroup) and error.exceptions:
        return end_of(error.exceptions[0])
    text = " ".join(str(error).split()) or type(error).__name__
    return "failed", text[:LONGEST_CAUSE]
