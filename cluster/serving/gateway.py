"""What Ray Serve's proxy says by itself, in OpenAI's schema.

The application answers every request with JSON, an error included. Where its replica is not up yet or has died, the
proxy answers in its own words, in plain text or not at all, and cuts a stream off. OpenAI's clients cannot read that.
"""

from __future__ import annotations

import json

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.serving.errors import RETRY_S, ApiError
from cluster.serving.events import DONE, event

ENVIRONMENT = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}.middlewares",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",  # a thread more, and several ways into it and back per request
}
"""Of Ray's processes: has Serve's proxy use this file. A Serve that another program has started goes without."""


def middlewares() -> list[Middleware]:
    """Called by Serve's proxy as it starts."""
    return [Middleware(OpenAiErrors)]


class OpenAiErrors:
    """ASGI middleware for the proxy: lets what the application says through, and replaces what the proxy says."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        reply = _Reply(send)
        await self._app(scope, receive, reply.send)
        await reply.finish()


class _Reply:
    """One reply on its way to the client. Mutable: it keeps what was sent so far."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._kind: str | None = None
        """Media type of the reply that has begun."""
        self._has_ended = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kind = dict(message["headers"]).get(b"content-type", b"").partition(b";")[0].decode("latin-1")
            if message["status"] >= 400 and kind != "application/json":
                return  # and then nothing has begun, and its body is not sent either
            self._kind = kind
        if self._kind is not None:
            self._has_ended = message["type"] == "http.response.body" and not message.get("more_body", False)
            await self._send(message)

    async def finish(self) -> None:
        """End what the application did not end. A reply that is neither a stream nor whole is cut off as it is."""
        if self._kind is None:
            error = _nobody_there()
            body, headers = json.dumps(error.body).encode(), {**error.headers, "Content-Type": "application/json"}
            raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
            raw.append((b"content-length", str(len(body)).encode()))
            await self._send({"type": "http.response.start", "status": error.status, "headers": raw})
            await self._send({"type": "http.response.body", "body": body})
        elif self._kind == "text/event-stream" and not self._has_ended:
            await self._send({"type": "http.response.body", "body": event(_nobody_there().body) + DONE})


def _nobody_there() -> ApiError:
    message = f"no engine answers this request: it is starting, or has ended; try again in {RETRY_S} s"
    headers = {"Retry-After": str(RETRY_S)}
    return ApiError(message, status=503, code="engine_unavailable", headers=headers)
