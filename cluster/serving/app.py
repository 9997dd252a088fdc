"""The HTTP side of a served policy, as an ASGI application: an OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from actors.errors import RolloutError
from actors.fleet.cutting import CutPicture
from cluster.serving.admission import Admission, Ticket
from cluster.serving.deltas import Delta, merged
from cluster.serving.errors import ApiError
from cluster.serving.events import DONE, event
from cluster.serving.metrics import Metrics
from cluster.serving.policy import Answered, Event, OnEvent, ServedPolicy
from cluster.serving.remote import fetch_picture
from cluster.serving.replies import ReplyHead
from cluster.serving.requests import ChatRequest, parse_request

T = TypeVar("T")
CLIENT_GONE = 499
"""As nginx has it: nobody reads this answer."""
HEALTH_S = 20.0
INLINE_BYTES = 64 << 10
"""A body of at most this size is parsed where it is: that takes as long as the way into a thread and back."""
STREAM_INTERVAL_S = 0.02
"""Between two parts of a stream: shorter than anybody reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """What an operator chooses."""

    model: str
    """Name under which clients ask for the policy."""
    created: int
    """Unix time in seconds, shown as the model's age."""
    key_digests: frozenset[str] = frozenset()
    """SHA-256 of each key that is accepted; without any, no key is asked for."""
    allow_remote_images: bool = False
    max_body_bytes: int = 32 << 20
    max_picture_bytes: int = 20 << 20
    max_running: int = 64
    """Requests that one replica plays at a time."""
    max_waiting: int = 256
    """Requests that may wait on one replica; others get 429."""
    max_waiting_bytes: int = 1 << 30
    """Of bodies and encoded pictures that one replica holds until it is their turn; what would exceed it gets 429."""
    body_timeout_s: float = 30.0
    """From the head of a request to the end of its body."""
    request_timeout_s: float = 600.0
    """From a request to the end of its reply."""

    def __post_init__(self) -> None:
        if self.max_waiting_bytes < self.max_body_bytes:
            raise ValueError(
                f"max_waiting_bytes={self.max_waiting_bytes} is invalid: must be at least {self.max_body_bytes}, the "
                "largest body (one and a half times --max-picture-mib); raise --max-waiting-mib"
            )


def build_app(start: Callable[[], Awaitable[ServedPolicy]], settings: ServeSettings) -> Starlette:
    """The application. It starts its policy, found in `state.policy`, with its lifespan, and ends it at the end."""
    api = _Api(settings)
    routes = [
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/models", api.list_models, methods=["GET"]),
        Route("/v1/models/{model:path}", api.show_model, methods=["GET"]),
        Route("/health", api.health, methods=["GET"]),
        Route("/metrics", api.metrics, methods=["GET"]),
    ]
    handlers: dict[Any, Any] = {ApiError: _api_error, HTTPException: _http_error, Exception: _bug}

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.policy = policy = await start()
        try:
            yield
        finally:
            policy.shutdown()

    return Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)


async def _api_error(request: Request, error: ApiError) -> Response:
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


async def _http_error(request: Request, error: HTTPException) -> Response:
    what = f"{request.method} {request.url.path}"
    message = f"{what} is not served here; there are POST /v1/chat/completions, GET /v1/models, /health, /metrics"
    known = ApiError(message, status=error.status_code, code="unknown_url", headers=error.headers)
    return await _api_error(request, known)


async def _bug(request: Request, error: Exception) -> Response:
    """Starlette raises it again afterwards, for the log."""
    return JSONResponse(ApiError("the server failed at this request", status=500).body, status_code=500)


class _Api:
    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._admission = Admission(
            max_running=settings.max_running, max_waiting=settings.max_waiting, max_bytes=settings.max_waiting_bytes
        )
        self._metrics = Metrics()

    async def health(self, request: Request) -> Response:
        try:
            async with asyncio.timeout(HEALTH_S):
                await _policy(request).check_health()
        except (RolloutError, TimeoutError) as error:
            raise ApiError(f"the engine does not generate: {error}", status=503, code="engine_unavailable") from error
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        return Response(self._metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def list_models(self, request: Request) -> Response:
        self._check_key(request)
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def show_model(self, request: Request) -> Response:
        self._check_key(request)
        self._check_model(request.path_params["model"])
        return JSONResponse(self._model())

    async def chat(self, request: Request) -> Response:
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                response = await self._chat(request)
        except ApiError as error:
            self._metrics.request_done(error.status)
            raise
        except ClientDisconnect:
            self._metrics.request_done(CLIENT_GONE)
            return Response(status_code=CLIENT_GONE)
        except TimeoutError:
            self._metrics.request_done(504)
            raise self._late() from None
        self._metrics.request_done(response.status_code)
        return response

    async def _chat(self, request: Request) -> Response:
        self._check_key(request)
        async with contextlib.AsyncExitStack() as cleanup:
            cleanup.callback(self._count_inside)
            ticket = cleanup.enter_context(self._admission.ticket())
            self._count_inside()
            policy, chat = _policy(request), await self._read(request, ticket)
            picture = await unless_gone(request.receive, self._admit(policy, chat.picture, ticket, cleanup))
            chat = replace(chat, picture=b"")  # its memory is free again
            head = ReplyHead(id=f"chatcmpl-{uuid.uuid4().hex}", created=int(time.time()), model=self._settings.model)

            async def play(on_event: OnEvent | None = None) -> Answered:
                answered = await policy.answer(chat.question, picture, on_event)
                self._metrics.answered(answered)
                return answered

            if chat.streams:
                parts = stream_reply(head, play, includes_usage=chat.includes_usage)
                cleanup.push_async_callback(parts.aclose)
                first = await unless_gone(request.receive, anext(parts))  # until then an error has a status
                return EventStream(first, parts, cleanup.pop_all(), self._late, self._settings.request_timeout_s)
            return JSONResponse(head.completion(await unless_gone(request.receive, play())))

    def _count_inside(self) -> None:
        self._metrics.set_inside(self._admission.num_inside)

    async def _read(self, request: Request, ticket: Ticket) -> ChatRequest:
        settings = self._settings
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise ApiError("the content type must be application/json", status=415, code="unsupported_media_type")
        body = bytearray()
        try:
            async with asyncio.timeout(settings.body_timeout_s):
                async for piece in request.stream():
                    body += piece
                    if len(body) > settings.max_body_bytes:
                        message = f"the body has more than {settings.max_body_bytes} bytes"
                        raise ApiError(message, status=413, code="request_too_large")
                    ticket.hold(len(body))
        except TimeoutError:
            message = f"the body did not arrive within {settings.body_timeout_s:g} s"
            raise ApiError(message, status=408, code="request_timeout") from None
        parse = partial(
            parse_request,
            bytes(body),
            max_picture_bytes=settings.max_picture_bytes,
            allows_remote=settings.allow_remote_images,
        )
        chat = parse() if len(body) <= INLINE_BYTES else await asyncio.to_thread(parse)
        self._check_model(chat.model)
        ticket.hold(len(chat.picture))
        return chat

    async def _admit(
        self, policy: ServedPolicy, picture: bytes | str, ticket: Ticket, cleanup: contextlib.AsyncExitStack
    ) -> CutPicture:
        """The views of the picture, once it is this request's turn."""
        if isinstance(picture, str):
            picture = await fetch_picture(picture, max_bytes=self._settings.max_picture_bytes, on_size=ticket.hold)
        await cleanup.enter_async_context(self._admission.turn())
        cut = await policy.cut(picture)
        ticket.hold(0)
        return cut

    def _check_key(self, request: Request) -> None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if not self._settings.key_digests:
            return
        is_known = digest_key(key.strip()) in self._settings.key_digests
        if scheme.lower() != "bearer" or not is_known:
            message = "the API key is missing or wrong: send the header Authorization: Bearer KEY"
            raise ApiError(message, status=401, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _check_model(self, name: str) -> None:
        if name != self._settings.model:
            message = f"the model {name[:80]!r} does not exist; this server has {self._settings.model!r}"
            raise ApiError(message, status=404, param="model", code="model_not_found")

    def _model(self) -> dict[str, Any]:
        settings = self._settings
        return {"id": settings.model, "object": "model", "created": settings.created, "owned_by": "visionthink"}

    def _late(self) -> ApiError:
        message = f"the reply was not done within {self._settings.request_timeout_s:g} s"
        return ApiError(message, status=504, code="timeout")


def _policy(request: Request) -> ServedPolicy:
    policy: ServedPolicy = request.app.state.policy
    return policy


def digest_key(key: str) -> str:
    """What is kept of an API key."""
    return hashlib.sha256(key.encode()).hexdigest()


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client leaves.

    Raises:
        ClientDisconnect: it has left.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def stream_reply(
    head: ReplyHead, play: Callable[[OnEvent], Coroutine[Any, Any, Answered]], *, includes_usage: bool
) -> AsyncGenerator[bytes, None]:
    """Server-sent events of a reply, the first with its first text. Closing this cancels the playing.

    What comes within `STREAM_INTERVAL_S` goes out together: each part costs the processes on its way 0.4 ms.
    """
    waiting: list[Delta] = []
    has_text = asyncio.Event()

    def on_event(each: Event) -> None:
        if isinstance(each, Delta):
            waiting.append(each)
            has_text.set()

    task = asyncio.create_task(play(on_event))
    task.add_done_callback(lambda _: has_text.set())
    opening = event(head.opening())
    try:
        while await has_text.wait() and waiting:
            part = b"".join(event(head.delta(delta)) for delta in merged(waiting))
            waiting.clear()
            if not task.done():
                has_text.clear()
            yield opening + part
            opening = b""
            await asyncio.wait([task], timeout=STREAM_INTERVAL_S)
        answered = task.result()
        yield opening + event(head.closing(answered))
        if includes_usage:
            yield event(head.usage(answered))
        yield DONE
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class EventStream(Response):
    """Sends events until they end or the client leaves, and then cleans up. An error is the last event."""

    media_type = "text/event-stream"

    def __init__(
        self,
        first: bytes,
        rest: AsyncIterator[bytes],
        cleanup: contextlib.AsyncExitStack,
        late: Callable[[], ApiError],
        timeout_s: float,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first, self._rest, self._cleanup, self._late, self._timeout_s = first, rest, cleanup, late, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._cleanup:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            with contextlib.suppress(ClientDisconnect):
                await unless_gone(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        async def send_part(part: bytes, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": part, "more_body": more})

        try:
            async with asyncio.timeout(self._timeout_s):
                await send_part(self._first)
                async for part in self._rest:
                    await send_part(part)
        except (ApiError, TimeoutError) as error:
            await send_part(event((error if isinstance(error, ApiError) else self._late()).body) + DONE)
        await send_part(b"", more=False)
