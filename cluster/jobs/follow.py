"""Follows a job's log to its end across lost connections, and tells how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ray.job_submission import JobStatus

from cluster.jobs.dashboard import ANSWER_S, UNREACHABLE
from cluster.stopping import CONTINUE, MARK, RESUMABLE

T = TypeVar("T")

MAX_SILENCE_S = 300.0
"""After this long without a response, the dashboard is given up. The job continues."""
RETRY_S = 2.0
STREAM_S = 300.0
"""After this long without output, the log is requested again."""
END_CHARS = 4000
STOPPED_CODE = 128 + 15
"""Of a job that was stopped and saved nothing: Ray keeps no exit code of what it stops."""


class JobDetails(Protocol):
    """The part of Ray's description of a job needed to tell how it ended."""

    @property
    def status(self) -> JobStatus: ...
    @property
    def driver_exit_code(self) -> int | None: ...
    @property
    def message(self) -> str | None: ...


class JobClient(Protocol):
    """The part of Ray's client needed to follow a job."""

    def get_job_info(self, job_id: str) -> JobDetails: ...
    def get_job_logs(self, job_id: str) -> str: ...
    def tail_job_logs(self, job_id: str) -> AsyncIterator[str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A job that has ended."""

    status: JobStatus
    exit_code: int
    """The job's own; of a stopped job, RESUMABLE where its run was saved."""
    line: str
    """What it ended with: the last line of a run that was stopped, Ray's reason where the job never ran, or empty."""


def how_it_ended(details: JobDetails, log_end: str) -> Ended:
    """Exit code and last word of a job in a final state."""
    line, code = stop_line(log_end), details.driver_exit_code
    if details.status is JobStatus.SUCCEEDED:
        return Ended(status=details.status, exit_code=0, line="")
    if code is None and details.status is JobStatus.STOPPED:
        return Ended(status=details.status, exit_code=RESUMABLE if is_saved(line) else STOPPED_CODE, line=line)
    if code is None:
        reason = next(iter((details.message or "").strip().splitlines()), "")
        return Ended(status=details.status, exit_code=1, line=reason)
    return Ended(status=details.status, exit_code=code if code >= 0 else 128 - code, line=line)


def stop_line(log_end: str) -> str:
    """The line that a stopped command ends with; empty if the log has none."""
    return next((line for line in reversed(log_end.splitlines()) if line.startswith(MARK)), "")


def is_saved(line: str) -> bool:
    """Whether the last line of a stopped run says that nothing of it is lost."""
    return line.endswith(CONTINUE)


async def follow_job(
    client: JobClient, job: str, show: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic
) -> Ended:
    """Show a job's log until the job has ended; an interrupted stream is resumed where it stopped.

    Raises:
        one of UNREACHABLE: the dashboard did not respond for MAX_SILENCE_S.
    """
    num_shown, heard_at, end = 0, clock(), ""

    def shown(text: str) -> None:
        nonlocal num_shown, end
        show(text)
        num_shown += len(text)
        end = (end + text)[-END_CHARS:]

    while True:
        num_before, num_seen = num_shown, 0
        with contextlib.suppress(*UNREACHABLE):
            async for text in _within(client.tail_job_logs(job), STREAM_S):  # starts from the beginning each time
                num_seen += len(text)
                if num_seen > num_shown:
                    shown(text[max(0, len(text) - (num_seen - num_shown)) :])
        try:
            details = await asked(client.get_job_info, job)
            if details.status.is_terminal() or num_shown == num_before:
                # The log may grow after the stream has ended, and some proxies block streams.
                shown((await asked(client.get_job_logs, job))[num_shown:])
            heard_at = clock()
        except UNREACHABLE:
            if clock() - heard_at > MAX_SILENCE_S:
                raise
        else:
            if details.status.is_terminal():
                return how_it_ended(details, end)
        await asyncio.sleep(RETRY_S)


async def _within(texts: AsyncIterator[str], seconds: float) -> AsyncIterator[str]:
    """The same texts; TimeoutError if one takes longer, since a dead connection looks like a quiet one."""
    while True:
        try:
            yield await asyncio.wait_for(anext(texts), seconds)
        except StopAsyncIteration:
            return


async def asked(call: Callable[[str], T], job: str) -> T:
    """One call of the client, beside the event loop and with a deadline."""
    return await asyncio.wait_for(asyncio.to_thread(call, job), ANSWER_S)
