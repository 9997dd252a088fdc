"""A command of ours as a Ray job: ships this folder, follows the log, ends with the job's outcome."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import aiohttp
import requests
import typer
from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE
from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE, _dir_travel, _get_excludes
from ray.exceptions import RayError
from ray.job_submission import JobStatus, JobSubmissionClient

from actors.causes import gist
from actors.errors import RunError
from cluster.addresses import bypass_proxies, own_hosts
from cluster.jobs.package import (
    EXCLUDES,
    START,
    Package,
    absolute_arguments,
    absolute_settings,
    entrypoint,
    key_files,
    size_problem,
)
from configs.load import load_config

T = TypeVar("T")

WITH_SETTINGS = ("train", "eval")
"""Commands that take settings and read or write what stays here."""
UNREACHABLE = (ConnectionError, RuntimeError, OSError, RayError, aiohttp.ClientError, requests.RequestException)
"""With which Ray's client tells that the dashboard, or a proxy before it, did not answer."""
MAX_UPLOAD_BYTES = min(GCS_STORAGE_MAX_SIZE, DASHBOARD_CLIENT_MAX_SIZE)
"""The dashboard takes less than the store behind it."""
MAX_SILENCE_S = 300.0
"""A dashboard that cannot be asked for so long is given up. The job goes on."""
RETRY_S = 2.0
ANSWER_S = 60.0
STREAM_S = 300.0
"""A log that is quiet for so long is asked for anew."""


class JobClient(Protocol):
    """The part of Ray's client that following a job needs."""

    def get_job_status(self, job_id: str) -> JobStatus: ...
    def get_job_logs(self, job_id: str) -> str: ...
    def tail_job_logs(self, job_id: str) -> AsyncIterator[str]: ...


def submit_job(arguments: Sequence[str], address: str) -> int:
    """Submit a `visionthink` command, print the job's log as it comes, return 0 when the job succeeded and 1 otherwise.

    Ctrl-C leaves the job alone and says how to stop it.

    Raises:
        RunError: no cluster answers at this address, the folder is too large, or the dashboard is lost on the way.
    """
    folder = Path.cwd()
    if not (folder / START).is_file():
        raise RunError(f"{folder} is not the project's folder, which goes along with the job: submit from there")
    excludes = [*EXCLUDES, *key_files(arguments)]
    arguments = [*absolute_arguments(arguments, folder), *job_settings(arguments, folder)]
    if problem := size_problem(measure_package(folder, excludes), folder, MAX_UPLOAD_BYTES):
        raise RunError(problem)
    logging.getLogger("ray").setLevel(logging.WARNING)  # it tells of each stream that ends
    os.environ.update(bypass_proxies(os.environ, own_hosts(address)))
    try:
        client = JobSubmissionClient(address)
        job = client.submit_job(
            entrypoint=entrypoint(arguments),
            runtime_env={"working_dir": str(folder), "excludes": excludes},
        )
    except requests.exceptions.ConnectionError as error:
        raise RunError(f"no Ray dashboard answers at {address}: {gist(error)}") from error
    except ConnectionError as error:
        raise RunError(f"no Ray dashboard answers at {address}: start a head with `ray start --head`") from error
    except UNREACHABLE as error:
        raise RunError(f"the Ray dashboard at {address} did not take the job: {gist(error)}") from error
    typer.echo(f"job {job}", err=True)
    where = f"{job} --address {address}"
    how_to_stop = f"`ray job stop {where}` stops it, `ray job logs --follow {where}` shows its log"
    try:
        status = asyncio.run(follow_job(client, job, lambda text: typer.echo(text, nl=False)))
    except KeyboardInterrupt:
        typer.echo(f"job {job} goes on: {how_to_stop}", err=True)
        return 130
    except UNREACHABLE as error:
        raise RunError(
            f"the dashboard at {address} is lost: {gist(error)}; job {job} goes on: {how_to_stop}"
        ) from error
    if status is not JobStatus.SUCCEEDED:
        typer.echo(f"job {job} ended as {status.value}", err=True)
    return 0 if status is JobStatus.SUCCEEDED else 1


def job_settings(arguments: Sequence[str], folder: Path) -> list[str]:
    """Settings to add to a command, so that what it names is found from the job's own folder, and outlives it.

    A command that goes on with a run takes that run's settings: only what is given with it is looked at.

    Raises:
        ValueError: the command's settings are not valid.
    """
    if not arguments or arguments[0] not in WITH_SETTINGS:
        return []
    overrides = [argument for argument in arguments[1:] if "=" in argument and not argument.startswith("-")]
    config = load_config(_option(arguments, "--config", "-c"), overrides)
    settings = absolute_settings(config, folder)
    goes_on = "--resume" in arguments
    if not goes_on and _option(arguments, "--policy") is None:
        return settings
    wanted = {override.partition("=")[0] for override in overrides} | ({"run.dir"} if goes_on else set())
    return [setting for setting in settings if setting.partition("=")[0] in wanted]


def _option(arguments: Sequence[str], *names: str) -> str | None:
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument in names:
            return following
        if argument.startswith(f"{names[0]}="):
            return argument.removeprefix(f"{names[0]}=")
    return None


def measure_package(folder: Path, excludes: Sequence[str]) -> Package:
    """Size of what Ray would upload, before it is compressed: Ray's own walk with Ray's own rules."""
    sizes: dict[str, int] = {}

    def add(path: Path) -> None:
        if path.is_file():
            top = path.relative_to(folder).parts[0]
            sizes[top] = sizes.get(top, 0) + path.stat().st_size

    try:
        _dir_travel(folder, [_get_excludes(folder, list(excludes))], add, include_gitignore=True)
    except OSError as error:
        raise RunError(f"{error.filename} cannot be uploaded: {error.strerror}; list it in .rayignore") from error
    return Package(entries=tuple(sorted(sizes.items(), key=lambda entry: entry[1], reverse=True)))


async def follow_job(
    client: JobClient, job: str, show: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic
) -> JobStatus:
    """Show a job's log until the job has ended; a stream that ends before it is taken up where it was.

    Raises:
        one of UNREACHABLE: nothing could be had of the dashboard for MAX_SILENCE_S.
    """
    num_shown, heard_at = 0, clock()
    while True:
        num_before, num_seen = num_shown, 0
        with contextlib.suppress(*UNREACHABLE):
            async for text in _within(client.tail_job_logs(job), STREAM_S):  # from its beginning each time
                num_seen += len(text)
                if num_seen > num_shown:
                    show(text[max(0, len(text) - (num_seen - num_shown)) :])
                    num_shown = num_seen
        try:
            status = await _asked(client.get_job_status, job)
            if status.is_terminal() or num_shown == num_before:
                # The end of the log may come after that of the stream, and some proxies let no stream through.
                rest = (await _asked(client.get_job_logs, job))[num_shown:]
                show(rest)
                num_shown += len(rest)
            heard_at = clock()
        except UNREACHABLE:
            if clock() - heard_at > MAX_SILENCE_S:
                raise
        else:
            if status.is_terminal():
                return status
        await asyncio.sleep(RETRY_S)


async def _within(texts: AsyncIterator[str], seconds: float) -> AsyncIterator[str]:
    """The same texts; TimeoutError where one is later than that: a connection can be dead and look quiet."""
    while True:
        try:
            yield await asyncio.wait_for(anext(texts), seconds)
        except StopAsyncIteration:
            return


async def _asked(call: Callable[[str], T], job: str) -> T:
    """Ray's client waits without end for an answer."""
    return await asyncio.wait_for(asyncio.to_thread(call, job), ANSWER_S)
