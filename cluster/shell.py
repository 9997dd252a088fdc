"""Shared by all commands: options, exit codes, error reporting, printing of results.

Exit codes: 0 done · 1 an error, told in one line · 2 wrong usage · 75 a run was stopped and saved, the same command
continues it · 128+N ended by signal N with nothing saved (130: Ctrl-C) · 69 a job cannot be followed any more.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from actors.errors import VisionThinkError, first_error
from cluster.stopping import MARK, RunStopped, Stopping

console = Console(stderr=True)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Overrides as section.key=value, e.g. train.num_steps=60 reward.penalty=never."),
]
ConfigName = Annotated[str, typer.Option("--config", "-c", help="Config name in configs/, or path of a YAML file.")]
PolicyPath = Annotated[
    Path | None,
    typer.Option(
        "--policy",
        help="A run, RUN/checkpoints/step-N, or an export (or any Hugging Face folder of the Qwen2.5-VL family). "
        "Default: model.path of the config.",
    ),
]
PolicyConfigName = Annotated[
    str | None,
    typer.Option(
        "--config", "-c", help="Settings by name or YAML file. Default: those of the policy's run or export, or tiny."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the results as one JSON object on the last line of stdout.")]


def process_started_at() -> float:
    """Start of this process on the monotonic clock: `first_step_s` and `wall_s` are measured from here."""
    return time.monotonic() - max(0.0, time.time() - float(psutil.Process().create_time()))


@contextmanager
def report_errors() -> Iterator[None]:
    """Known errors are printed as one line and exit with code 1; a bug keeps its traceback."""
    try:
        yield
    except (VisionThinkError, ValueError) as error:
        for line in str(error).splitlines() or [type(error).__name__]:
            console.print(f"error: {line}", style="bold red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except RunStopped as stopped:
        warn_user(str(stopped))
        raise typer.Exit(stopped.code) from None
    except KeyboardInterrupt:
        warn_user(f"{MARK}Ctrl-C")
        raise typer.Exit(130) from None


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A transient progress bar on stderr; the body advances it with calls of (done, total)."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda num_done, num_all: progress.update(task, completed=num_done, total=num_all)


def warn_user(text: str) -> None:
    """A line on stderr; brackets in it are not parsed as markup."""
    console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)


def print_json(figures: dict[str, Any]) -> None:
    typer.echo(json.dumps(figures))


def run_async(main: Coroutine[Any, Any, Any], stopping: Stopping | None = None) -> Any:
    """Run to completion, or until a signal stops it; of several simultaneous failures, raise the first known one.

    Raises:
        RunStopped: a signal came first.
    """
    stopping = stopping or Stopping()
    try:
        with stopping.listening():
            return asyncio.run(stopping.run(main))
    except BaseExceptionGroup as group:
        known = group.subgroup(lambda error: isinstance(error, VisionThinkError | ValueError))
        if known is None:
            raise
        raise first_error(known) from group
