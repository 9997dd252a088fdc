"""Fifty kinds of bad requests: each gets OpenAI's error object, and a good request beside it gets its answer."""

import asyncio
import base64
import json
import struct
import zlib

import pytest
from openai.types.shared import ErrorObject

from cluster.serving.app import digest_key
from tests.cluster.serving.endpoint import chat, data_uri, encoded, endpoint, image_part, text_part

PNG = encoded()
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and has no pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    return PNG[:8] + struct.pack(">I", len(head)) + chunk + struct.pack(">I", zlib.crc32(chunk))


def bomb(side: int) -> bytes:
    """A valid PNG of `side` x `side` black pixels: a thousandth of what it decodes to."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress(b"\0" * (side + 1) * side, 9)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return PNG[:8] + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def pictures(*urls: str, question: str = "which colour?") -> dict:
    return {"model": "tiny", "messages": [{"role": "user", "content": [*map(image_part, urls), text_part(question)]}]}


def messages(*all_messages: object) -> dict:
    return {"model": "tiny", "messages": list(all_messages)}


def without(name: str) -> dict:
    return {key: value for key, value in chat().items() if key != name}


def user(*parts: object) -> dict:
    return {"role": "user", "content": list(parts)}


GOOD_URL = data_uri(PNG)
BODY = json.dumps(chat())
DEEP = b'{"model": "tiny", "metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"

BAD = {
    "empty body": (b"", 400, "invalid_json"),
    "no JSON": (b"which colour?", 400, "invalid_json"),
    "cut JSON": (BODY[:-20].encode(), 400, "invalid_json"),
    "a list": (b"[]", 400, "invalid_json"),
    "null": (b"null", 400, "invalid_json"),
    "not UTF-8": (BODY.replace("which", "wh\xefch").encode("latin-1"), 400, "invalid_json"),
    "UTF-16": (BODY.encode("utf-16"), 400, "invalid_json"),
    "deep nesting": (DEEP, 400, "invalid_json"),
    "duplicate key": (
        BODY.replace('"model": "tiny"', '"model": "tiny", "model": "other"').encode(),
        400,
        "invalid_json",
    ),
    "NaN temperature": (BODY[:-1].encode() + b', "temperature": NaN}', 400, "invalid_json"),
    "infinite temperature": (BODY[:-1].encode() + b', "temperature": 1e999}', 400, "invalid_value"),
    "a number of 5,000 digits": (BODY[:-1].encode() + b', "seed": ' + b"9" * 5000 + b"}", 400, "invalid_json"),
    "huge JSON": (b'{"model": "' + b"x" * 2_000_000 + b'"}', 413, "request_too_large"),
    "no model": (without("model"), 400, "missing_required_parameter"),
    "unknown model": (chat(model="gpt-4o"), 404, "model_not_found"),
    "model is a number": (chat(model=4), 400, "invalid_value"),
    "no messages": (without("messages"), 400, "missing_required_parameter"),
    "empty messages": (messages(), 400, "invalid_value"),
    "messages is text": (chat(messages="hello"), 400, "invalid_value"),
    "content is null": (messages({"role": "user", "content": None}), 400, "invalid_value"),
    "unknown role": (messages({"role": "wizard", "content": "hi"}), 400, "invalid_value"),
    "an earlier turn": (
        messages(user(image_part(GOOD_URL), text_part("a")), {"role": "assistant", "content": "b"}),
        400,
        "invalid_value",
    ),
    "two user messages": (messages(user(image_part(GOOD_URL)), user(text_part("a"))), 400, "invalid_value"),
    "no user message": (messages({"role": "system", "content": "be nice"}), 400, "invalid_value"),
    "unknown part": (
        messages(user(image_part(GOOD_URL), {"type": "video_url", "video_url": {"url": "x"}})),
        400,
        "invalid_value",
    ),
    "part without a type": (messages(user({"text": "hi"})), 400, "invalid_value"),
    "no question": (pictures(GOOD_URL, question="  \n"), 400, "invalid_value"),
    "half a surrogate pair": (pictures(GOOD_URL, question="\ud800?"), 400, "invalid_value"),
    "question of 100,000 characters": (pictures(GOOD_URL, question="why? " * 20_000), 400, "context_length_exceeded"),
    "question longer than the prompt may be": (
        pictures(GOOD_URL, question="why? " * 1000),
        400,
        "context_length_exceeded",
    ),
    "no picture": (pictures(), 400, "invalid_number_of_images"),
    "two pictures": (pictures(GOOD_URL, GOOD_URL), 400, "invalid_number_of_images"),
    "11 pictures": (pictures(*[GOOD_URL] * 11), 400, "invalid_number_of_images"),
    "picture in the system message": (
        messages({"role": "system", "content": [image_part(GOOD_URL)]}, user(text_part("a"))),
        400,
        "invalid_value",
    ),
    "remote picture": (pictures("https://example.com/cat.png"), 400, "invalid_image"),
    "file URL": (pictures("file:///etc/passwd"), 400, "invalid_image"),
    "a path": (pictures("/etc/passwd"), 400, "invalid_image"),
    "not a URL": (pictures("http://[::1/x.png"), 400, "invalid_image"),
    "data URI without base64": (pictures("data:image/png,abc"), 400, "invalid_image"),
    "data URI without content": (pictures("data:image/png;base64,"), 400, "invalid_image"),
    "broken base64": (pictures("data:image/png;base64,@@@@"), 400, "invalid_image"),
    "base64 with a letter missing": (pictures(GOOD_URL[:-1]), 400, "invalid_image"),
    "wrong MIME type": (pictures(data_uri(PNG, "text/html")), 400, "invalid_image"),
    "SVG": (pictures(data_uri(SVG, "image/svg+xml")), 400, "invalid_image"),
    "SVG declared as PNG": (pictures(data_uri(SVG)), 400, "invalid_image"),
    "GIF declared as PNG": (pictures(data_uri(b"GIF89a" + b"\0" * 40)), 400, "invalid_image"),
    "a text": (pictures(data_uri(b"hello")), 400, "invalid_image"),
    "truncated PNG": (pictures(data_uri(PNG[:-200])), 400, "invalid_image"),
    "truncated JPEG": (pictures(data_uri(encoded(kind="JPEG")[:-300], "image/jpeg")), 400, "invalid_image"),
    "PNG of zero pixels": (pictures(data_uri(png_header(0, 10))), 400, "invalid_image"),
    "PNG header of 4 gigapixels": (pictures(data_uri(png_header(65_000, 65_000))), 400, "invalid_image"),
    "decompression bomb": (pictures(data_uri(bomb(5_000))), 400, "invalid_image"),
    "a line of pixels": (pictures(data_uri(encoded(size=(2000, 1)))), 400, "invalid_image"),
    "picture of too many bytes": (pictures(data_uri(b"\x89PNG" + b"\0" * 600_000)), 413, "image_too_large"),
    "text temperature": (chat(temperature="0.5"), 400, "invalid_value"),
    "temperature 3": (chat(temperature=3), 400, "invalid_value"),
    "temperature true": (chat(temperature=True), 400, "invalid_value"),
    "top_p 0": (chat(top_p=0), 400, "invalid_value"),
    "max_tokens 0": (chat(max_tokens=0), 400, "invalid_value"),
    "max_tokens -1": (chat(max_completion_tokens=-1), 400, "invalid_value"),
    "fractional max_tokens": (chat(max_tokens=1.5), 400, "invalid_value"),
    "seed beyond 64 bits": (chat(seed=2**64), 400, "invalid_value"),
    "unknown resolution": (chat(resolution="half"), 400, "invalid_value"),
    "misspelt field": (chat(resolutoin="full"), 400, "unknown_parameter"),
    "a field with half a surrogate pair": (chat(**{"\udc00": 1}), 400, "invalid_value"),
    "a model with half a surrogate pair": (chat(model="\udc00"), 404, "model_not_found"),
    "a field with a name of 10,000 characters": (chat(**{"x" * 10_000: 1}), 400, "unknown_parameter"),
    "two answers": (chat(n=2), 400, "unsupported_parameter"),
    "n true": (chat(n=True), 400, "unsupported_parameter"),
    "stop words": (chat(stop=["\n"]), 400, "unsupported_parameter"),
    "tools": (chat(tools=[{"type": "function"}]), 400, "unsupported_parameter"),
    "JSON mode": (chat(response_format={"type": "json_object"}), 400, "unsupported_parameter"),
    "log-probabilities": (chat(logprobs=True), 400, "unsupported_parameter"),
    "stream options without a stream": (chat(stream_options={"include_usage": True}), 400, "invalid_value"),
    "stream is text": (chat(stream="yes"), 400, "invalid_value"),
    "the engine fails at it": (chat(question="poison"), 500, "engine_error"),
    "the engine is dead": (chat(question="death"), 503, "engine_unavailable"),
    "a stream that fails at once": (chat(question="poison", stream=True), 500, "engine_error"),
}


def check_error(fields: dict, code: str) -> None:
    ErrorObject.model_validate(fields["error"])
    assert fields["error"]["code"] == code, fields
    assert fields["error"]["message"]


async def test_a_bad_request_gets_openais_error_and_a_good_one_beside_it_its_answer():
    assert len(BAD) >= 50
    async with endpoint(
        limits={"max_source_pixels": 1 << 24}, max_body_bytes=1_000_000, max_picture_bytes=500_000
    ) as here:
        for name, (content, status, code) in BAD.items():
            bad, good = await asyncio.gather(here.post(content), here.post(chat("blue")))
            assert good.json()["choices"][0]["message"]["content"] == "blue", name
            assert bad.status_code == status, (name, bad.text)
            check_error(bad.json(), code)
            assert len(bad.text) < 2000, name
        assert here.engine.num_running == 0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("GET", "/v1/embeddings", 404),
        ("GET", "/", 404),
    ],
)
async def test_a_wrong_path_or_method_gets_openais_error(method, path, status):
    async with endpoint() as here:
        reply = await here.client.request(method, path)
        assert reply.status_code == status
        check_error(reply.json(), "unknown_url")


async def test_an_unknown_model_is_not_found_by_its_path():
    async with endpoint() as here:
        reply = await here.client.get("/v1/models/a/b")
        assert reply.status_code == 404
        check_error(reply.json(), "model_not_found")


@pytest.mark.parametrize("content_type", ["text/plain", "multipart/form-data", ""])
async def test_what_is_not_declared_as_json_is_refused(content_type):
    """So that a page in a browser cannot use an endpoint on loopback without asking for permission first."""
    async with endpoint() as here:
        reply = await here.post(chat(), content_type=content_type)
        assert reply.status_code == 415
        check_error(reply.json(), "unsupported_media_type")


@pytest.mark.parametrize(
    "header", [None, "Bearer", "Bearer wrong", "Basic c2VjcmV0", "secret", "Bearer secret\u00e9", "Bearer sécret"]
)
async def test_without_the_key_nothing_but_health_is_served(header):
    async with endpoint(key_digests=frozenset({digest_key("secret"), digest_key("second")})) as here:
        headers = {} if header is None else {"authorization": header.encode()}
        for path in ("/v1/models", "/v1/models/tiny"):
            reply = await here.client.get(path, headers=headers)
            assert reply.status_code == 401
            check_error(reply.json(), "invalid_api_key")
        headers |= {"content-type": "application/json"}
        reply = await here.client.post("/v1/chat/completions", content=b"{", headers=headers)
        assert reply.status_code == 401, "before anything else of the request is looked at"
        for key in ("secret", "second"):
            assert (await here.post(chat(), authorization=f"Bearer {key}")).status_code == 200
        assert (await here.client.get("/health")).status_code == 200


async def test_a_body_that_does_not_arrive_is_given_up():
    async def slow():
        yield b"{"
        await asyncio.sleep(5)

    async with endpoint(body_timeout_s=0.05) as here:
        reply = await here.client.post(
            "/v1/chat/completions", content=slow(), headers={"content-type": "application/json"}
        )
        assert reply.status_code == 408
        check_error(reply.json(), "request_timeout")


async def test_a_reply_that_takes_too_long_is_given_up():
    async with endpoint(request_timeout_s=0.2) as here:
        here.engine.gate.clear()
        reply = await here.post(chat())
        assert reply.status_code == 504
        check_error(reply.json(), "timeout")
        streamed = await here.post(chat(stream=True))
        assert '"timeout"' in streamed.text
        assert here.engine.num_running == 0
        assert here.engine.num_cancelled == 2


async def test_a_picture_declared_as_another_supported_kind_is_read_by_its_content():
    async with endpoint() as here:
        for kind in ("PNG", "WEBP"):
            reply = await here.post(pictures(data_uri(encoded("green", kind=kind), "image/jpeg")))
            assert reply.json()["choices"][0]["message"]["content"] == "green"
        line_breaks = base64.encodebytes(PNG).decode()
        assert (await here.post(pictures(f"data:image/png;base64,{line_breaks}"))).status_code == 400
