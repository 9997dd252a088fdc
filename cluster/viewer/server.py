"""The local server: routes, who may see them, and what a browser may do with them.

It listens on loopback and reads only. Whoever has the token of this start may look: it comes in the address once, then
as a cookie. A page of another site reaches nothing, as it has neither, and a foreign name for this machine (DNS
rebinding) fails by the Host header.
"""

from __future__ import annotations

import hmac
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.records.reading import Row
from cluster.viewer import pages, queries
from cluster.viewer.export import csv_lines, write_filtered
from cluster.viewer.filters import Filter
from cluster.viewer.pictures import encode
from cluster.viewer.runs import RunBook, RunFolder
from cluster.viewer.text import visible

HOSTS = ("127.0.0.1", "localhost")
"""Names by which a browser of this machine, or one behind an SSH tunnel, calls it."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
MAX_ROWS = 200
"""Of one answer to the table, which asks for what is in sight."""
MAX_CELL = 240
"""Characters of a text in the table; the episode has it whole."""
NO_TOKEN = "Open the address that `visionthink view` printed: it holds the token of this start. It is asked for once."

Handler = Callable[[Request], Response]


class Guard:
    """Asks for the token, and gives every answer the headers that keep a page to itself."""

    def __init__(self, app: ASGIApp, *, token: str, cookie: str) -> None:
        self._app = app
        self._token = token
        self._cookie = cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message["headers"] if name.decode() not in HEADERS]
                message["headers"] = kept + [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            await send(message)

        answer: ASGIApp = self._answer(Request(scope)) or self._app
        await answer(scope, receive, send_guarded)

    def _answer(self, request: Request) -> Response | None:
        given = request.query_params.get("token")
        if given is not None and self._is_right(given):
            rest = [(name, value) for name, value in request.query_params.multi_items() if name != "token"]
            path = "/" + request.url.path.lstrip("/")  # `//host` would lead to another site
            reply = RedirectResponse(path + (f"?{urlencode(rest)}" if rest else ""), status_code=303)
            reply.set_cookie(self._cookie, given, httponly=True, samesite="lax", path="/")
            return reply
        if self._is_right(request.cookies.get(self._cookie, "")):
            return None
        return HTMLResponse(f"<!doctype html><title>VisionThink</title><p>{NO_TOKEN}", status_code=403)

    def _is_right(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "replace"), self._token.encode())


class Viewer:
    """Answers the requests: each method is a route."""

    def __init__(self, book: RunBook) -> None:
        self._book = book
        self._templates = pages.make_templates()

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
        return self.show("episodes.html", pages.episodes(self.run_of(request), Filter.of(request.query_params)))

    def rows(self, request: Request) -> Response:
        run, chosen = self.run_of(request), Filter.of(request.query_params)
        offset = _whole(request.query_params.get("offset", "0"), "offset")
        limit = min(MAX_ROWS, _whole(request.query_params.get("limit", "100"), "limit"))
        con = run.episodes.cursor()
        found = []
        for at, row in enumerate(queries.page(con, chosen, offset=offset, limit=limit), start=offset):
            cells: dict[str, Any] = {name: _cell(value) for name, value in row.items()}
            found.append(cells | {"url": pages.listed_url(run.name, row, chosen, at)})
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
        return self.show("group.html", pages.group(run, rows))

    def pair(self, request: Request) -> Response:
        asked, found = request.query_params, list[tuple[RunFolder, Row]]()
        for name in ("a", "b"):
            owner, file = pages.split_evaluation(self._book, asked.get(name, ""))
            key = {"set": "heldout", "file": file, "sample": asked.get("sample", ""), "index": "0"}
            found.append((owner, self.row_of(owner, key | {"kind": asked.get("kind", "policy")})))
        return self.show("group.html", pages.pair(self.run_of(request), found))

    def episode(self, request: Request) -> Response:
        run, asked = self.run_of(request), request.query_params
        position = _whole(asked["pos"], "pos") if "pos" in asked else None
        chosen = Filter.of(dict(parse_qsl(asked.get("list", ""))))
        return self.show("episode.html", pages.episode(run, self.row_of(run, asked), chosen, position))

    def heldout(self, request: Request) -> Response:
        asked = request.query_params
        kind = asked.get("kind") or "policy"
        if kind not in pages.KIND_NAMES:
            raise ValueError(f"kind={kind!r} is invalid: give one of {', '.join(pages.KIND_NAMES)}")
        values = pages.heldout(self.run_of(request), self._book, asked.get("a", ""), asked.get("b", ""), kind)
        return self.show("heldout.html", values)

    def picture(self, request: Request) -> Response:
        run = self.run_of(request)
        views = run.pictures.views(run.episodes.read(self.row_of(run, request.query_params)))
        if isinstance(views, str):
            raise HTTPException(404, views)
        view = views[0] if request.query_params.get("view") == "quarter" else views[1]
        if view is None:
            raise HTTPException(404, "the picture is too small for a quarter view")
        media_type, content = encode(view)
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
            Mount("/static", StaticFiles(directory=pages.STATIC)),
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
    if not text.isdecimal() or len(text) > 12:
        raise ValueError(f"{name}={text!r} is invalid: give a whole number")
    return int(text)


def _cell(value: object) -> object:
    """A value of the table: texts are cut, and hold nothing that acts unseen."""
    if not isinstance(value, str):
        return value
    return visible(value if len(value) <= MAX_CELL else value[: MAX_CELL - 1] + "…")


def _download(suffix: str) -> dict[str, str]:
    return {"content-disposition": f'attachment; filename="episodes.{suffix}"'}
