"""The local server: its routes. It listens on loopback and reads only; `guard` says who may look."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from cluster.records.reading import Row
from cluster.viewer import episode_pages, pages, queries, rendering
from cluster.viewer.boxes import view_of
from cluster.viewer.export import csv_lines, write_filtered
from cluster.viewer.filters import Filter
from cluster.viewer.guard import HOSTS, Guard
from cluster.viewer.pictures import encode, picture_of
from cluster.viewer.runs import RunBook, RunFolder
from cluster.visible import visible

MAX_ROWS = 200
"""Of one answer to the table, which asks for what is in sight."""
MAX_CELL = 240
"""Characters of a text in the table; the episode has it whole."""

Handler = Callable[[Request], Response]


class Viewer:
    """Answers the requests: each method is a route."""

    def __init__(self, book: RunBook) -> None:
        self._book = book
        self._templates = rendering.make_templates()

    def show(self, template: str, values: dict[str, Any], status: int = 200) -> HTMLResponse:
        return HTMLResponse(self._templates.get_template(template).render(**values), status_code=status)

    def plain(self, template: str, build: Callable[[RunFolder], dict[str, Any]]) -> Handler:
        return lambda request: self.show(template, build(self.run_of(request)))

    def run_of(self, request: Request) -> RunFolder:
        run = self._book.get(request.path_params["run"])
        if run is None:
            raise HTTPException(404, "there is no such run")
        return run

    def row_of(self, run: RunFolder, key: Mapping[str, str]) -> Row:
        row = queries.episode(run.episodes.cursor(), key)
        if row is None:
            raise HTTPException(404, "there is no such episode: the run may have gone back to an earlier step")
        return row

    def runs(self, request: Request) -> Response:
        return self.show("runs.html", pages.runs_page(self._book))

    def compare(self, request: Request) -> Response:
        chosen = [self._book.get(name) for name in dict.fromkeys(request.query_params.getlist("run"))]
        found = [run for run in chosen if run is not None]
        if not found:
            raise HTTPException(404, "choose one or more runs on the page of runs")
        return self.show("compare.html", pages.compare_page(found))

    def events(self, request: Request) -> Response:
        return self.show("events.html", pages.events(self.run_of(request), request.query_params.get("kind", "")))

    def episodes(self, request: Request) -> Response:
        return self.show("episodes.html", episode_pages.episodes(self.run_of(request), Filter.of(request.query_params)))

    def rows(self, request: Request) -> Response:
        run, chosen = self.run_of(request), Filter.of(request.query_params)
        offset = _whole(request.query_params.get("offset", "0"), "offset")
        limit = min(MAX_ROWS, _whole(request.query_params.get("limit", "100"), "limit"))
        con = run.episodes.cursor()
        found = []
        for at, row in enumerate(queries.page(con, chosen, offset=offset, limit=limit), start=offset):
            cells: dict[str, Any] = {name: _cell(value) for name, value in row.items()}
            found.append(cells | {"url": rendering.listed_url(run.name, row, chosen, at)})
        total, presets = queries.counts(con, chosen)
        return JSONResponse({"total": total, "presets": presets, "offset": offset, "rows": found})

    def as_csv(self, request: Request) -> Response:
        con, chosen = self.run_of(request).episodes.cursor(), Filter.of(request.query_params)
        lines = csv_lines(con, chosen)
        return StreamingResponse(lines, media_type="text/csv; charset=utf-8", headers=_download("csv"))

    def as_parquet(self, request: Request) -> Response:
        run, chosen = self.run_of(request), Filter.of(request.query_params)
        with tempfile.NamedTemporaryFile(prefix="visionthink-", suffix=".parquet", delete=False) as file:
            path = Path(file.name)
        with ExitStack() as cleanup:
            cleanup.callback(path.unlink, missing_ok=True)
            write_filtered(run.episodes, chosen, path)
            cleanup.pop_all()  # once it is sent
        clean = BackgroundTask(path.unlink, missing_ok=True)
        return FileResponse(
            path, media_type="application/vnd.apache.parquet", headers=_download("parquet"), background=clean
        )

    def group(self, request: Request) -> Response:
        run, asked = self.run_of(request), request.query_params
        rows = queries.group(run.episodes.cursor(), *(asked.get(name, "") for name in ("set", "file", "sample")))
        if not rows:
            raise HTTPException(404, "there is no such group: the run may have gone back to an earlier step")
        return self.show("group.html", episode_pages.group(run, rows))

    def pair(self, request: Request) -> Response:
        asked, found = request.query_params, list[tuple[RunFolder, Row]]()
        for name in ("a", "b"):
            owner, file = pages.split_evaluation(self._book, asked.get(name, ""))
            key = {"set": "heldout", "file": file, "sample": asked.get("sample", ""), "index": "0"}
            found.append((owner, self.row_of(owner, key | {"kind": asked.get("kind", "policy")})))
        return self.show("group.html", episode_pages.pair(self.run_of(request), found))

    def episode(self, request: Request) -> Response:
        run, asked = self.run_of(request), request.query_params
        position = _whole(asked["pos"], "pos") if "pos" in asked else None
        chosen = Filter.of(dict(parse_qsl(asked.get("list", ""))))
        return self.show("episode.html", episode_pages.episode(run, self.row_of(run, asked), chosen, position))

    def heldout(self, request: Request) -> Response:
        asked = request.query_params
        kind = asked.get("kind") or "policy"
        if kind not in rendering.KIND_NAMES:
            raise ValueError(f"kind={kind!r} is invalid: give one of {', '.join(rendering.KIND_NAMES)}")
        values = pages.heldout(self.run_of(request), self._book, asked.get("a", ""), asked.get("b", ""), kind)
        return self.show("heldout.html", values)

    def picture(self, request: Request) -> Response:
        run = self.run_of(request)
        views = run.pictures.views(run.episodes.read(self.row_of(run, request.query_params)))
        if isinstance(views, str):
            raise HTTPException(404, views)
        height, width = views[1].shape[:2]
        asked = view_of(request.query_params.get("view", "full"), (height, width))
        picture = None if asked is None else picture_of(views, asked)
        if picture is None:
            raise HTTPException(404, f"there is no such view: the full one has {width} x {height} pixels")
        media_type, content = encode(picture)
        return Response(content, media_type=media_type)

    def pulse(self, request: Request) -> Response:
        return JSONResponse({"pulse": self.run_of(request).pulse})

    def sorry(self, request: Request, error: Exception) -> Response:
        status, detail = (error.status_code, error.detail) if isinstance(error, HTTPException) else (400, str(error))
        title = "Not found" if status == 404 else "Invalid address"
        return self.show("error.html", {"title": title, "detail": detail, "live": ""}, status)

    def routes(self) -> list[Route | Mount]:
        of_run: dict[str, Handler] = {
            "": self.plain("overview.html", pages.overview),
            "curves": self.plain("curves.html", pages.curves),
            "system": self.plain("system.html", pages.system),
            "judge": self.plain("judge.html", pages.judge),
            "events": self.events,
            "episodes": self.episodes,
            "episodes.json": self.rows,
            "episodes.csv": self.as_csv,
            "episodes.parquet": self.as_parquet,
            "group": self.group,
            "pair": self.pair,
            "episode": self.episode,
            "heldout": self.heldout,
            "picture": self.picture,
            "pulse": self.pulse,
        }
        return [
            Route("/", self.runs),
            Route("/compare", self.compare),
            *(Route(f"/r/{{run}}/{name}", handler) for name, handler in of_run.items()),
            Mount("/static", StaticFiles(directory=rendering.STATIC)),
        ]


def make_app(book: RunBook, *, token: str, cookie: str = "visionthink") -> Starlette:
    """The viewer of some runs. Name the cookie by the port: all ports of a host share their cookies."""
    viewer = Viewer(book)
    return Starlette(
        routes=viewer.routes(),
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS), www_redirect=False),
            Middleware(Guard, token=token, cookie=cookie),
            Middleware(GZipMiddleware, minimum_size=2000, compresslevel=4),
        ],
        exception_handlers={HTTPException: viewer.sorry, ValueError: viewer.sorry},
    )


def _whole(text: str, name: str) -> int:
    if not re.fullmatch(r"\d{1,12}", text, re.ASCII):
        raise ValueError(f"{name}={text!r} is invalid: give a whole number")
    return int(text)


def _cell(value: object) -> object:
    """A value of the table: texts are cut, and hold nothing that acts unseen. JSON has no number that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if not isinstance(value, str):
        return value
    return visible(value if len(value) <= MAX_CELL else value[: MAX_CELL - 1] + "…")


def _download(suffix: str) -> dict[str, str]:
    return {"content-disposition": f'attachment; filename="episodes.{suffix}"'}
