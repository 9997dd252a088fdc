"""Lists the jobs of a cluster, finds one and waits for the end of one that was stopped."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from ray.job_submission import JobStatus

from actors.errors import RunError
from cluster.jobs.follow import END_CHARS, Ended, how_it_ended
from cluster.stopping import RESUMABLE

RUN, RUN_DIR, COMMAND, GRACE = "visionthink_run", "visionthink_run_dir", "visionthink_command", "visionthink_grace_s"
"""Metadata of our jobs."""
POLL_S = 0.5
STOP_MARGIN_S = 15.0
"""From the end of a run's grace time to SIGKILL by Ray."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as `visionthink jobs` shows it."""

    job: str
    """Ray's submission id."""
    run: str
    """Name of the run; empty for other commands."""
    run_dir: str
    command: str
    state: str
    """pending, running, done, saved (stopped, and the same command continues it), stopped, failed."""
    exit_code: int | None
    started_at: str
    """ISO 8601, UTC; empty while pending."""
    ended_at: str
    grace_s: float
    """Seconds that Ray leaves the job to end by itself when it is stopped, but for STOP_MARGIN_S."""

    @property
    def is_over(self) -> bool:
        return self.state not in ("pending", "running")


class ControlClient(Protocol):
    """The part of Ray's client needed to list and stop jobs."""

    def list_jobs(self) -> list[Any]: ...
    def stop_job(self, job_id: str) -> bool: ...
    def get_job_info(self, job_id: str) -> Any: ...
    def get_job_logs(self, job_id: str) -> str: ...


STATES = {
    JobStatus.PENDING: "pending",
    JobStatus.RUNNING: "running",
    JobStatus.SUCCEEDED: "done",
    JobStatus.STOPPED: "stopped",
    JobStatus.FAILED: "failed",
}


def list_jobs(client: ControlClient) -> list[Job]:
    """Jobs of this cluster that run a visionthink command, newest first, whoever submitted them."""
    ours = [details for details in client.list_jobs() if details.submission_id and _command(details)]
    return [_job(details) for details in sorted(ours, key=lambda details: details.start_time or 0, reverse=True)]


def _command(details: Any) -> str:
    """The visionthink command of a job; empty for a job of others."""
    if told := (details.metadata or {}).get(COMMAND):
        return str(told)
    found = re.search(r"(?:\bvisionthink|cluster\.cli|jobs/start\.sh)\s+([a-z]+)", details.entrypoint)
    return found[1] if found else ""


def _job(details: Any) -> Job:
    metadata, code = details.metadata or {}, details.driver_exit_code
    return Job(
        job=details.submission_id,
        run=metadata.get(RUN, ""),
        run_dir=metadata.get(RUN_DIR, ""),
        command=_command(details),
        state="saved" if code == RESUMABLE else STATES[details.status],
        exit_code=code,
        started_at=_iso(details.start_time),
        ended_at=_iso(details.end_time),
        grace_s=float(metadata.get(GRACE, 0.0)),
    )


def _iso(milliseconds: int | None) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds") if milliseconds else ""


def find_job(jobs: Sequence[Job], name: str) -> Job:
    """The job with this id, or the newest of the run with this name, one that runs before those that are over.

    Raises:
        RunError: there is none.
    """
    of_run = sorted((job for job in jobs if job.run == name), key=lambda job: job.is_over)
    found = next((job for job in jobs if job.job == name), None) or next(iter(of_run), None)
    if found is None:
        raise RunError(f"no job or run {name!r} on this cluster: `visionthink jobs` lists them")
    return found


def rival(jobs: Sequence[Job], run: str, run_dir: str) -> Job | None:
    """A job that is not over and trains the same run."""
    return next((job for job in jobs if run and (job.run, job.run_dir) == (run, run_dir) and not job.is_over), None)


def await_end(
    client: ControlClient,
    job: Job,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Ended:
    """Wait until a job that was told to stop has ended.

    Raises:
        RunError: it outlasted its grace time, and Ray's own limit after that.
    """
    limit_s = job.grace_s + 2 * STOP_MARGIN_S
    deadline_at = clock() + limit_s
    while not (details := client.get_job_info(job.job)).status.is_terminal():
        if clock() > deadline_at:
            raise RunError(f"job {job.job} did not end within {limit_s:g} s of its stop: `ray job delete` removes it")
        sleep(POLL_S)
    return how_it_ended(details, client.get_job_logs(job.job)[-END_CHARS:])
