"""`visionthink view` and `visionthink report`."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import webbrowser
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from actors.errors import RunError
from cluster.shell import Json, console, print_json, report_errors


def view(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Run folders, or folders that hold some. Default: runs.", show_default=False),
    ] = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.", min=0, max=65535)] = 0,
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Open the address in a browser.")] = True,
    as_json: Json = False,
) -> None:
    """Look through runs in a browser: curves, every episode with its views and tokens, held-out results, judge.

    Also while a run goes on. The server reads the run folders, writes nothing, and listens on this machine only; the
    address holds a token. For a run on another machine, forward the port: ssh -L 8888:127.0.0.1:8888 HOST, with
    --port 8888 there. Ctrl-C ends it.
    """
    with report_errors():
        import uvicorn

        from cluster.viewer.runs import RunBook, find_runs
        from cluster.viewer.server import make_app

        paths = runs or [Path("runs")]
        found = find_runs(paths)
        if not found:
            raise RunError(f"{', '.join(map(str, paths))}: no run there yet; start one with `visionthink train`")
        token = secrets.token_urlsafe(16)
        listening = _listen(port)
        port = listening.getsockname()[1]
        book = RunBook(paths)
        page = f"r/{quote(next(iter(book.all())), safe='')}/" if len(found) == 1 else ""
        url = f"http://127.0.0.1:{port}/{page}?token={token}"
        if as_json:
            print_json({"url": url, "runs": len(found)})
        else:
            typer.echo(url)
            console.print("Ctrl-C ends the viewer.", style="dim")
        if open_ and (
            os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        ):  # else it is one in this terminal
            webbrowser.open(url)
        app = make_app(book, token=token, cookie=f"visionthink-{port}")
        config = uvicorn.Config(app, log_level="warning", server_header=False, lifespan="off", ws="none")
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise RunError(f"--port {port} is not free ({error.strerror}): give another one, or 0") from error


def report(run: Annotated[Path, typer.Argument(help="Run folder.")], as_json: Json = False) -> None:
    """Write report.html of a run: the viewer's pages as one file that needs no server, with some of the episodes.

    It holds overview, curves, held-out results and events, and of each kind of episode the newest with their pictures.
    """
    with report_errors():
        from cluster.viewer.report import write_report

        path = str(write_report(run))
        if as_json:
            print_json({"report": path})
        else:
            typer.echo(path)
