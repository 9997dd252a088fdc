"""Runs a command as a Ray job: uploads this folder, streams the log, returns the job's outcome."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import typer
from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE
from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE, _dir_travel, _get_excludes
from ray.job_submission import JobStatus

from actors.causes import root_cause
from actors.errors import RunError
from cluster.jobs.control import COMMAND, GRACE, RUN, RUN_DIR, STOP_MARGIN_S, ControlClient, list_jobs, rival
from cluster.jobs.dashboard import UNREACHABLE, dashboard_url, explained, open_dashboard
from cluster.jobs.follow import Ended, JobClient, follow_job
from cluster.jobs.package import (
    EXCLUDES,
    MARK_VARIABLE,
    START,
    Package,
    absolute_arguments,
    absolute_settings,
    added_run_dir,
    entrypoint,
    key_patterns,
    mark_of,
    size_problem,
)
from cluster.runtime.exposure import ALLOW_OPEN
from cluster.shell import print_json, warn_user
from configs.load import load_config
from configs.schema import Config

WITH_SETTINGS = ("train", "eval")
"""Commands that take settings and use folders that are not uploaded."""
MAX_UPLOAD_BYTES = min(GCS_STORAGE_MAX_SIZE, DASHBOARD_CLIENT_MAX_SIZE)
"""The limit of the dashboard is lower than that of the store behind it."""
LOST = 69
"""Exit code where a job can be followed no longer but goes on (EX_UNAVAILABLE of sysexits.h)."""
NO_AGENT = "No available agent"
"""What the dashboard of a head says that has just started."""
AGENT_S, AGENT_PAUSE_S = 30.0, 0.5


class Submits(Protocol):
    """The part of Ray's client needed to submit a job."""

    def submit_job(self, **job: Any) -> str: ...


def submit_when_ready(client: Submits, *, wait_s: float = AGENT_S, **job: Any) -> str:
    """Submit a job; returns its id. The head answers before its agent, which starts the jobs, is up."""
    end = time.monotonic() + wait_s
    while True:
        try:
            return client.submit_job(**job)
        except RuntimeError as error:
            if NO_AGENT not in str(error) or time.monotonic() >= end:
                raise
        time.sleep(AGENT_PAUSE_S)


def submit_job(arguments: Sequence[str], address: str, *, follow: bool = True, as_json: bool = False) -> int:
    """Submit a `visionthink` command, print the job's log as it comes, return the job's exit code.

    Ctrl-C does not stop the job, but prints how to. A run that a job of this cluster trains already is not submitted
    again; one whose job is over is continued by it.

    Raises:
        RunError: no cluster answers at this address, the folder is too large, or the run is under way.
        ValueError: the command's settings or the address are not valid.
    """
    folder = Path.cwd()
    if not (folder / START).is_file():
        raise RunError(f"{folder} is not the project folder, which a job uploads: submit from there")
    config = command_config(arguments)
    added = job_settings(arguments, folder, config)
    command = [*absolute_arguments(arguments, folder), *added]
    excludes = [*EXCLUDES, *key_patterns(arguments, config, folder)]
    metadata = job_metadata(arguments[0], added, config)
    url, client = dashboard_url(address), open_dashboard(address)
    if "--resume" in arguments or any(argument.startswith("run.name=") for argument in arguments):
        refuse_rival(client, url, metadata)  # without a name it would be another run
    if problem := size_problem(measure_package(folder, excludes), folder, MAX_UPLOAD_BYTES):
        raise RunError(problem)
    with _marked(mark_of(added, secrets.token_hex(4)) if RUN in metadata else None) as mark, explained(url):
        job = submit_when_ready(
            client,
            entrypoint=entrypoint(command),
            runtime_env={
                "working_dir": str(folder),
                "excludes": excludes,
                "env_vars": job_environment(config, mark),
            },
            submission_id=f"{metadata.get(RUN) or arguments[0]}-{secrets.token_hex(4)}",
            metadata=metadata,
        )
    if follow:
        warn_user(f"job {job}")
        return follow_to_end(client, job, url, as_json=as_json)
    if as_json:
        print_json({"job": job, "address": url, "run": metadata.get(RUN, ""), "run_dir": metadata.get(RUN_DIR, "")})
    else:
        typer.echo(job)
        warn_user(how_to_go_on(job, url))
    return 0


def refuse_rival(client: ControlClient, url: str, metadata: Mapping[str, str]) -> None:
    """Raise RunError if another job trains the same run: its driver would be refused, but later."""
    with explained(url):
        other = rival(list_jobs(client), metadata.get(RUN, ""), metadata.get(RUN_DIR, ""))
    if other is not None:
        raise RunError(f"job {other.job} trains run {other.run!r} already: {how_to_go_on(other.job, url)}")


@contextlib.contextmanager
def _marked(mark: Path | None) -> Iterator[Path | None]:
    """Leave the mark for the job to find, unless it was not submitted in the body."""
    if mark is None:
        yield None
        return
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        raise RunError(
            f"run.dir={str(mark.parent)!r} cannot be written to ({error.strerror}): set run.dir to an absolute path on "
            "storage that all nodes share"
        ) from error
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(mark.unlink, missing_ok=True)
        yield mark
        on_failure.pop_all()


def job_metadata(command: str, added: Sequence[str], config: Config | None) -> dict[str, str]:
    """What `visionthink jobs` knows a job by. Shown on the dashboard: no settings, which may be private.

    Args:
        added: the settings with absolute paths that the job gets.
    """
    if config is None or command != "train":
        return {COMMAND: command}
    folder = added_run_dir(added) or config.run.dir
    return {COMMAND: command, RUN: config.run.name, RUN_DIR: folder, GRACE: f"{config.run.stop_grace_s:g}"}


def job_environment(config: Config | None, mark: Path | None) -> dict[str, str]:
    """Ray ends a job by SIGTERM, and by SIGKILL after 3 s unless it is told otherwise: a run needs its grace time.

    A cluster that this command may use without a token, its job may use as well.
    """
    grace_s = config.run.stop_grace_s if config else 0.0
    wait = {"RAY_JOB_STOP_WAIT_TIME_S": str(math.ceil(grace_s + STOP_MARGIN_S))}
    allowed = {ALLOW_OPEN: os.environ[ALLOW_OPEN]} if os.environ.get(ALLOW_OPEN) else {}
    return {**wait, **allowed} if mark is None else {**wait, **allowed, MARK_VARIABLE: str(mark)}


def how_to_go_on(job: str, url: str) -> str:
    where = f"{job} --address {url}"
    return f"`visionthink stop {where}` stops it, `visionthink logs --follow {where}` shows its log"


def follow_to_end(client: JobClient, job: str, url: str, *, as_json: bool = False) -> int:
    """Show a job's log until its end; returns its exit code, 130 on Ctrl-C, or LOST. The job goes on in both cases."""
    continues = f"job {job} continues: {how_to_go_on(job, url)}"
    try:
        ended: Ended = asyncio.run(follow_job(client, job, lambda text: typer.echo(text, nl=False, err=as_json)))
    except KeyboardInterrupt:
        warn_user(continues)
        return 130
    except UNREACHABLE as error:
        warn_user(f"the dashboard at {url} is lost: {root_cause(error)}; {continues}")
        return LOST
    if ended.status is not JobStatus.SUCCEEDED:
        warn_user(f"job {job} ended as {ended.status.value}" + (f": {ended.line}" if ended.line else ""))
    if as_json:
        print_json({"job": job, "state": ended.status.value, "exit_code": ended.exit_code, "line": ended.line})
    return ended.exit_code


def command_config(arguments: Sequence[str]) -> Config | None:
    """The settings of a command that takes any.

    Raises:
        ValueError: they are not valid.
    """
    if not arguments or arguments[0] not in WITH_SETTINGS:
        return None
    return load_config(_option(arguments, "--config", "-c"), _overrides(arguments))


def _overrides(arguments: Sequence[str]) -> list[str]:
    return [argument for argument in arguments[1:] if "=" in argument and not argument.startswith("-")]


def job_settings(arguments: Sequence[str], folder: Path, config: Config | None) -> list[str]:
    """Settings to add to a command, so that its paths are valid in the job's folder and its results outlive it.

    A command that resumes or evaluates a run uses that run's settings: only explicit overrides are considered.
    """
    if config is None:
        return []
    settings = absolute_settings(config, folder)
    goes_on = "--resume" in arguments
    if not goes_on and _option(arguments, "--policy") is None:
        return settings
    wanted = {override.partition("=")[0] for override in _overrides(arguments)} | ({"run.dir"} if goes_on else set())
    return [setting for setting in settings if setting.partition("=")[0] in wanted]


def _option(arguments: Sequence[str], *names: str) -> str | None:
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument in names:
            return following
        if argument.startswith(f"{names[0]}="):
            return argument.removeprefix(f"{names[0]}=")
    return None


def measure_package(folder: Path, excludes: Sequence[str]) -> Package:
    """Size of the upload before compression, by Ray's own traversal and rules."""
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
