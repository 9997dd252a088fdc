"""What clients get where Serve's proxy answers in place of the application."""

import httpx
import openai
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse

from cluster.serving.events import event
from cluster.serving.gateway import OpenAiErrors

ASKS = {"model": "tiny", "messages": [{"role": "user", "content": "which colour?"}]}


def client_of(proxy):
    http = httpx.AsyncClient(transport=httpx.ASGITransport(OpenAiErrors(proxy)), base_url="http://here")
    return openai.AsyncOpenAI(base_url="http://here/v1", api_key="none", max_retries=0, http_client=http)


async def says_nothing(scope, receive, send):
    """As the proxy where a replica has died before its reply began."""


async def breaks_off(scope, receive, send):
    """As the proxy where a replica has died in a stream."""
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    chunk = {"id": "a", "object": "chat.completion.chunk", "created": 1, "model": "tiny", "choices": []}
    await send({"type": "http.response.body", "body": event(chunk), "more_body": True})


@pytest.mark.parametrize(
    "proxy",
    [
        says_nothing,
        PlainTextResponse("Path '/v1' not found. Ping http://.../-/routes for available routes.", status_code=404),
        PlainTextResponse("Service Unavailable", status_code=503),
    ],
)
async def test_a_proxy_without_an_application_is_an_engine_that_is_not_there(proxy):
    with pytest.raises(openai.InternalServerError) as caught:
        await client_of(proxy).chat.completions.create(**ASKS)
    error = caught.value
    assert (error.status_code, error.code, error.type) == (503, "engine_unavailable", "server_error")
    assert error.response.headers["Retry-After"] == "10"


async def test_a_stream_that_breaks_off_ends_with_an_error():
    stream = await client_of(breaks_off).chat.completions.create(**ASKS, stream=True)
    await anext(stream)
    with pytest.raises(openai.APIError, match="no engine answers") as caught:
        await anext(stream)
    assert caught.value.code == "engine_unavailable"


@pytest.mark.parametrize("status", [200, 401, 404, 503])
async def test_what_the_application_says_is_left_alone(status):
    body = {"error": {"message": "no", "type": "server_error", "param": None, "code": "engine_error"}}
    app = JSONResponse(body, status_code=status, headers={"Retry-After": "3"})
    async with client_of(app)._client as plain:
        reply = await plain.get("/v1/models")
    assert (reply.status_code, reply.json(), reply.headers["Retry-After"]) == (status, body, "3")


async def test_whole_streams_and_plain_pages_are_left_alone():
    async def parts():
        yield b"data: 1\n\n"
        yield b"data: [DONE]\n\n"

    for app, text in (
        (StreamingResponse(parts(), media_type="text/event-stream"), "data: 1\n\ndata: [DONE]\n\n"),
        (PlainTextResponse("visionthink_requests_inside 0.0\n"), "visionthink_requests_inside 0.0\n"),
    ):
        async with client_of(app)._client as plain:
            assert (await plain.get("/")).text == text
