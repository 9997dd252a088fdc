"""Ends a run on a signal, or on a notice that its node goes away: saved within a grace time, with a code of its own.

The first signal cancels the command's main task, which shuts down what it started; a run also saves its last finished
step. The whole is over within the grace time, whatever hangs. A second signal ends the process at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from actors.errors import LearnerError, VisionThinkError

RESUMABLE = 75
"""Exit code of a run that was stopped with its last finished step saved (EX_TEMPFAIL of sysexits.h)."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_S = 30.0
SHUTDOWN_S = 6.0
"""The part of the grace time that is left to shut down, at most a quarter of it."""
ECHO_S = 1.0
"""A terminal and a program around the command (`uv run`, `srun`) each pass the same signal on: that is one signal."""
MARK = "stopped by "
"""How the last line of a stopped command begins; `visionthink stop` looks for it."""
CONTINUE = "the same command with this run.name continues the run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a command is stopped."""

    name: str
    """As in "stopped by SIGTERM"."""
    signum: int
    """The signal; SIGTERM for a notice."""
    is_notice: bool = False
    """Given by Ray. The signals that often follow it are no second request."""

    @property
    def unsaved_code(self) -> int:
        """Exit code where nothing was saved, as a shell has it for this signal."""
        return 128 + self.signum


class RunStopped(Exception):
    """The command was stopped, and what it had to save is saved or lost. Not an error: nothing failed."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Stopping:
    """One per command. Mutable: it waits for the first signal.

    Args:
        grace_s: from the first signal to the end of the process.
        is_run: whether the same command continues what is stopped here, so that it ends with RESUMABLE.
        end: ends this process at once with an exit code.
    """

    def __init__(
        self,
        *,
        grace_s: float = GRACE_S,
        is_run: bool = False,
        end: Callable[[int], object] = os._exit,  # Ray ends the processes that this one owns
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.reason: Reason | None = None
        self._grace_s = grace_s
        self._is_run = is_run
        self._end = end
        self._clock = clock
        self._stopped_at = 0.0
        self._signalled_at: float | None = None
        self._outcome: RunStopped | None = None
        self._has_steps = False
        self._cancel: Callable[[], object] = lambda: None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """In the body, SIGNALS stop the command, but for those that it was started to ignore (`nohup`)."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python has signals in the main thread only
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}
        for number in SIGNALS:
            if before[number] is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.request(Reason(name=signal.Signals(number).name, signum=number))

    def request(self, reason: Reason) -> None:
        """Stop the command; at a second signal, end the process at once."""
        now = self._clock()
        if self.reason is None:
            self.reason, self._stopped_at = reason, now
            watchdog = threading.Timer(self._grace_s, self._give_up)
            watchdog.daemon = True
            watchdog.start()
            self._cancel()
        if reason.is_notice:
            return
        if self._signalled_at is None:
            self._signalled_at = now
        elif now - self._signalled_at >= ECHO_S and reason.signum != signal.SIGHUP:  # a terminal hangs up repeatedly
            self._tell(f"{MARK}{reason.name} for the second time: ended at once")
            self._end(reason.unsaved_code)

    async def run(self, main: Coroutine[Any, Any, Any]) -> Any:
        """The result of `main`.

        Raises:
            RunStopped: a signal came first.
        """
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
        if self.reason is not None:
            self._cancel()
        try:
            return await main
        except (asyncio.CancelledError, VisionThinkError):  # what is shut down may fail
            if self.reason is None:
                raise
            raise self._unsaved(self.reason) from None
        finally:
            self._cancel = lambda: None

    @contextlib.asynccontextmanager
    async def saving(
        self, save: Callable[[], Awaitable[int | None]], *, finished: Callable[[], int]
    ) -> AsyncIterator[None]:
        """The body is a run: where it is stopped, or fails by itself, its last finished step is saved.

        Args:
            save: saves it; returns the step of the newest checkpoint, None if there is none.
            finished: the last finished step, 0 before any.

        Raises:
            RunStopped: in place of what ended the body, once the command is stopped.
        """
        self._has_steps = True
        try:
            yield
        except (asyncio.CancelledError, VisionThinkError) as error:
            if self.reason is None and isinstance(error, VisionThinkError) and not isinstance(error, LearnerError):
                await self._try(save)  # the learner is well, and holds the last finished step
            if self.reason is None:
                raise
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            self._outcome = await self._saved(save, finished, self.reason)
            raise self._outcome from None

    async def _try(self, save: Callable[[], Awaitable[int | None]]) -> None:
        """Save a run that has failed, if that is still possible: its error counts, whatever becomes of this."""
        try:
            async with asyncio.timeout(self._grace_s):
                await save()
        except asyncio.CancelledError:
            if self.reason is None:
                raise
        except (TimeoutError, VisionThinkError, OSError):
            pass

    async def _saved(
        self, save: Callable[[], Awaitable[int | None]], finished: Callable[[], int], reason: Reason
    ) -> RunStopped:
        allowed_s = self._stopped_at + self._grace_s - min(SHUTDOWN_S, self._grace_s / 4) - self._clock()
        why = f"not done within {allowed_s:.0f} s (run.stop_grace_s={self._grace_s:g})"
        try:
            async with asyncio.timeout(max(0.0, allowed_s)):
                step = await save()
        except TimeoutError:
            pass
        except (VisionThinkError, OSError) as error:
            why = str(error)
        else:
            # The step that was being recorded may not count yet.
            if (step or 0) >= finished() - 1:
                what = " before a step was finished" if step is None else f": step {step} is saved"
                return RunStopped(f"{MARK}{reason.name}{what}; {CONTINUE}", RESUMABLE)
            why = f"step {finished()} is finished, the newest checkpoint is of step {step or 0}"
        lost = f"{MARK}{reason.name}, but the last step is not saved: {why}"
        return RunStopped(f"{lost}; {CONTINUE} from the checkpoint before", reason.unsaved_code)

    def _unsaved(self, reason: Reason) -> RunStopped:
        if self._outcome is not None:
            return self._outcome
        if self._is_run:
            return RunStopped(f"{MARK}{reason.name} before a step was finished; {CONTINUE}", RESUMABLE)
        return RunStopped(f"{MARK}{reason.name}", reason.unsaved_code)

    def _give_up(self) -> None:
        """The grace time is over. Runs in a thread of its own, since the main one may hang."""
        assert self.reason is not None
        outcome = self._outcome
        if outcome is None and not self._has_steps:
            outcome = self._unsaved(self.reason)
        if outcome is None:
            late = f"{MARK}{self.reason.name}: nothing was saved within run.stop_grace_s={self._grace_s:g}"
            outcome = RunStopped(late, self.reason.unsaved_code)
        self._tell(str(outcome))
        self._end(outcome.code)

    def _tell(self, text: str) -> None:
        shown_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a live display hides it
        with contextlib.suppress(OSError, ValueError):
            os.write(sys.stderr.fileno(), f"{shown_cursor}{text}\n".encode())
