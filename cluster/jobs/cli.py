"""The commands `submit`, `jobs`, `logs` and `stop`: visionthink as jobs of a Ray cluster."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cluster.shell import Json, print_json, report_errors, warn_user

Address = Annotated[
    str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="URL of the Ray dashboard.", show_envvar=True)
]
LOCAL = "http://127.0.0.1:8265"
JobName = Annotated[str, typer.Argument(help="Job id, or the name of a run: its job that runs, or else its newest.")]


def add_job_commands(app: typer.Typer) -> None:
    for command in (submit, jobs, logs, stop):
        app.command()(command)


def submit(
    arguments: Annotated[
        list[str], typer.Argument(help="The visionthink command to run, e.g. train train.num_steps=40.")
    ],
    address: Address = LOCAL,
    follow: Annotated[
        bool, typer.Option("--follow/--detach", help="Show the log until the job ends, or return at once.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Run a visionthink command as a Ray job from this folder, follow its log and exit with its exit code.

    Ctrl-C leaves the job running. With --json the log goes to stderr.
    """
    with report_errors():
        from cluster.jobs.submit import submit_job

        raise typer.Exit(submit_job(arguments, address, follow=follow, as_json=as_json))


def jobs(address: Address = LOCAL, as_json: Json = False) -> None:
    """List the jobs that `visionthink submit` started on a cluster, newest first, with run and state."""
    with report_errors():
        from dataclasses import asdict

        from cluster.jobs.control import list_jobs
        from cluster.jobs.dashboard import dashboard_url, explained, open_dashboard

        client = open_dashboard(address)
        with explained(dashboard_url(address)):
            found = list_jobs(client)
        if as_json:
            print_json({"jobs": [asdict(job) for job in found]})
            return
        table = Table("job", "command", "run", "state", "started (UTC)", box=None, pad_edge=False)
        for job in found:
            state = job.state if job.exit_code in (None, 0, 75) else f"{job.state} ({job.exit_code})"
            table.add_row(job.job, job.command, job.run, state, job.started_at[:16].replace("T", " "))
        Console().print(table)


def logs(
    job: JobName,
    follow: Annotated[bool, typer.Option(help="Go on until the job ends, and exit with its exit code.")] = False,
    address: Address = LOCAL,
    as_json: Json = False,
) -> None:
    """Print the log of a job."""
    with report_errors():
        from cluster.jobs.control import find_job, list_jobs
        from cluster.jobs.dashboard import dashboard_url, explained, open_dashboard
        from cluster.jobs.submit import follow_to_end

        client, url = open_dashboard(address), dashboard_url(address)
        with explained(url):
            name = find_job(list_jobs(client), job).job
            if not follow:
                text = client.get_job_logs(name)
        if follow:
            raise typer.Exit(follow_to_end(client, name, url, as_json=as_json))
        if as_json:
            print_json({"job": name, "log": text})
        else:
            typer.echo(text, nl=False)


def stop(
    job: JobName,
    wait: Annotated[bool, typer.Option(help="Wait until the job has ended, and say what was saved.")] = False,
    address: Address = LOCAL,
    as_json: Json = False,
) -> None:
    """Stop a job. A run saves its last finished step first; the same `submit` continues it."""
    with report_errors():
        from cluster.jobs.control import await_end, find_job, list_jobs
        from cluster.jobs.dashboard import dashboard_url, explained, open_dashboard

        client, url = open_dashboard(address), dashboard_url(address)
        with explained(url):
            found = find_job(list_jobs(client), job)
            was_running = not found.is_over and client.stop_job(found.job)
            ended = await_end(client, found) if wait else None
        if as_json:
            line = (
                {} if ended is None else {"exit_code": ended.exit_code, "state": ended.status.value, "line": ended.line}
            )
            print_json({"job": found.job, "run": found.run, "was_running": was_running, **line})
        elif not was_running:
            warn_user(f"job {found.job} is over already: {found.state}")
        elif ended is None:
            warn_user(
                f"job {found.job} was told to stop, and has {found.grace_s:g} s to save: "
                f"`visionthink logs {found.job} --follow --address {url}` shows how it ends"
            )
        else:
            where = f"; run folder {found.run_dir}/{found.run}" if found.run else ""
            warn_user(f"job {found.job}: {ended.line or 'ended without a message'}{where}")
