"""Who may see the pages, and what a browser may do with them.

Whoever has the token of this start may look: it comes in the address once, then as a cookie. A page of another site
reaches nothing, as it has neither, and a foreign name for this machine (DNS rebinding) fails by the Host header.
"""

from __future__ import annotations

import hmac
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
NO_TOKEN = "Open the address that `visionthink view` printed: it holds the token of this start. It is asked for once."


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
