"""`visionthink status` and `visionthink scale`: they need nothing but the folder of the run."""

from __future__ import annotations

import contextlib
import json
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live

from actors.errors import RunError
from cluster.records.events import read_log
from cluster.shell import Json, print_json, report_errors
from cluster.status.files import Snapshot, is_alive, lease_owner, read_snapshot
from cluster.status.scaling import ScaleRequest, parse_arguments, read_request, withdraw_request, write_request
from cluster.status.table import KILLED, NUM_EVENTS, Look, as_json, render
from cluster.status.views import ScaleAnswer

RunFolder = Annotated[Path, typer.Argument(help="Run folder, e.g. runs/tiny.")]
WATCH_S = 1.0
LOOK_S = 0.2


def status(
    run: RunFolder,
    watch: Annotated[bool, typer.Option(help="Follow the run until it ends.")] = False,
    as_json_: Json = False,
) -> None:
    """Show members, states, versions, what is pending and why, step and ETA of a run.

    Works on every machine that sees the run folder.
    """
    with report_errors():
        found = look(run)
        if watch:
            with contextlib.suppress(KeyboardInterrupt):
                _follow(run, found, as_json_)
        elif as_json_:
            print_json(as_json(found))
        else:
            typer.echo(_text(found), nl=False)


def scale(
    run: RunFolder,
    sizes: Annotated[list[str], typer.Argument(help="ROLE=SIZE, e.g. rollouts=2..6 learner=1..4.")],
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the run's answer.")] = 60.0,
    as_json_: Json = False,
) -> None:
    """Change the size of a live run: of its rollouts, of its learner, or of both at once.

    The new sizes hold until they are changed again, also when the run is resumed.
    """
    with report_errors():
        answer = ask(run, parse_arguments(sizes), timeout_s=timeout)
        if as_json_:
            print_json({"is_accepted": answer.is_accepted, "requested": answer.requested, "reason": answer.reason})
        if not answer.is_accepted:
            raise RunError(answer.line())
        if not as_json_:
            typer.echo(answer.line())


def look(run: Path) -> Look:
    """What can be seen of a run now.

    Raises:
        ValueError: the folder has no status.
    """
    snapshot = read_snapshot(run)
    alive = is_alive(run, snapshot)
    if alive:
        snapshot = read_snapshot(run)  # it may have waited for a newer one
    return Look(
        snapshot=snapshot,
        is_alive=alive,
        now=time.time(),
        owner=lease_owner(run),
        events=read_log(run, last=NUM_EVENTS),
    )


def ask(
    run: Path,
    sizes: dict[str, str],
    *,
    timeout_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> ScaleAnswer:
    """Ask a live run for other sizes and wait for its answer; a request without one is taken back.

    Raises:
        ValueError: the folder has no status.
        RunError: the run is over, does not answer in time, or answered somebody else instead.
    """
    before = read_snapshot(run)
    if not is_alive(run, before):
        raise RunError(f"{run} is not running: {_why_not(before)}; only a running run can be scaled")
    request = ScaleRequest(id=secrets.token_hex(8), time=time.time(), sizes=sizes)
    write_request(run, request)
    try:
        return _answer_to(run, request, deadline=clock() + timeout_s, clock=clock, sleep=sleep)
    except TimeoutError as error:
        raise RunError(f"{run} did not answer within {timeout_s:g} s, and the request was taken back") from error
    finally:
        withdraw_request(run, request)


def _answer_to(
    run: Path, request: ScaleRequest, *, deadline: float, clock: Callable[[], float], sleep: Callable[[float], None]
) -> ScaleAnswer:
    while clock() < deadline:
        sleep(LOOK_S)
        with contextlib.suppress(ValueError):  # a shared file system may fail for a moment
            found = read_snapshot(run).status
            if found.scale is not None and found.scale.id == request.id:
                return found.scale
            if found.is_over:
                raise RunError(f"{run} ended before it answered: {found.cause or found.state}")
        if (asked := read_request(run)) is not None and asked.id != request.id:
            raise RunError(f"another request for {run} replaced this one: see `visionthink status {run}`")
    raise TimeoutError


def _why_not(snapshot: Snapshot) -> str:
    status = snapshot.status
    return f"it {status.state}" + (f": {status.cause}" if status.cause else "") if status.is_over else KILLED


def _text(found: Look) -> str:
    """As wide as the terminal, and without colours in a pipe."""
    out = Console()
    with out.capture() as captured:
        out.print(render(found))
    return captured.get()


def _follow(run: Path, found: Look, is_json: bool) -> None:
    """Until the run ends. In a pipe, a text or an object for each change."""
    if sys.stdout.isatty() and not is_json:
        with Live(render(found), console=Console(), auto_refresh=False) as live:
            while found.is_alive:
                time.sleep(WATCH_S)
                found = look(run)
                live.update(render(found), refresh=True)
        return
    shown: dict[str, Any] = {}
    while True:
        seen = as_json(found)
        del seen["age_s"]
        if seen != shown:
            shown = seen
            typer.echo(json.dumps(as_json(found)) if is_json else _text(found))
        if not found.is_alive:
            return
        time.sleep(WATCH_S)
        found = look(run)
