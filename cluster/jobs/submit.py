"""A command of ours as a Ray job: ships this folder, follows the log, ends with the job's outcome."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import typer
from ray.job_submission import JobStatus, JobSubmissionClient

from actors.errors import RunError

EXCLUDES = [".git", ".venv", "runs", "data", "**/__pycache__"]
"""What stays here: nodes have the locked environment, and read data from where the config says."""


async def submit_job(command: Sequence[str], address: str) -> int:
    """Submit, print the job's log as it comes, return 0 when it succeeded and 1 otherwise.

    Raises:
        RunError: no cluster answers at this address.
    """
    try:
        client = JobSubmissionClient(address)
    except ConnectionError as error:
        raise RunError(f"no Ray dashboard answers at {address}: start a head with `ray start --head`") from error
    job = client.submit_job(
        entrypoint=shlex.join(command), runtime_env={"working_dir": str(Path.cwd()), "excludes": EXCLUDES}
    )
    typer.echo(f"job {job}", err=True)
    async for lines in client.tail_job_logs(job):
        typer.echo(lines, nl=False)
    return 0 if client.get_job_status(job) is JobStatus.SUCCEEDED else 1
