"""From the bytes of a chat completion request to a question about one picture, or to an `ApiError` that says why not.

Nothing is ignored in silence: a field that this endpoint has no use for is refused, unless it holds the value that
means nothing. https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

import base64
import binascii
import difflib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from actors.play import Kind
from actors.tools.registry import unique_keys
from cluster.serving.errors import ApiError, bad_picture, bad_request

MIME_TYPES = ("image/jpeg", "image/jpg", "image/png", "image/webp")
"""Of data URIs. The content decides between them, as clients mix these up."""
MAX_QUESTION_CHARS = 65_536
ONE_PICTURE = "this policy answers one question about exactly one picture"
KINDS: dict[str, Kind] = {"auto": "policy", "quarter": "always_quarter", "full": "always_full"}
"""The field `resolution` -> how the request is played."""

NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "n": ((1,), "send the request again for another answer; its prompt is cached"),
    "stop": (([], ""), "a reply ends where the policy's format ends"),
    "logprobs": (
        (False,),
        "there are several turns behind an answer, and one list of log-probabilities could not say so",
    ),
    "tools": (([],), "the policy has tools of its own, which the server calls"),
    "tool_choice": (("auto", "none"), "use `resolution` to decide which view is shown"),
    "response_format": (({"type": "text"},), "the policy writes text in its own format"),
    "logit_bias": (({},), "the policy's format depends on its own distribution"),
    "presence_penalty": ((0,), "the policy's format repeats its tags"),
    "frequency_penalty": ((0,), "the policy's format repeats its tags"),
    "repetition_penalty": ((1,), "the policy's format repeats its tags"),
    "top_k": ((-1, 0), "use top_p"),
    "min_p": ((0,), "use top_p"),
    "modalities": ((["text"],), "the policy writes text"),
    "store": ((False,), "nothing is stored"),
}
"""Field -> the values that change nothing (as well as null), and why there are no others."""
IGNORED = ("user", "metadata", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key")
"""Fields that describe the caller or concern what does not occur here."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Text(_Strict):
    type: Literal["text"]
    text: str


class _ImageUrl(_Strict):
    url: str
    detail: Literal["auto", "low", "high"] | None = None
    """Read by OpenAI's models. Here `resolution` decides: many clients always send `low`."""


class _Image(_Strict):
    type: Literal["image_url"]
    image_url: _ImageUrl


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class _Message(_Strict):
    role: Literal["system", "developer", "user"]
    content: Annotated[
        list[Annotated[_Text | _Image, Field(discriminator="type")]],
        Field(max_length=256),
        BeforeValidator(_as_parts),
    ]
    name: str | None = None


class _StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class _Body(_Strict):
    model: str
    messages: Annotated[list[_Message], Field(min_length=1, max_length=64)]
    resolution: Literal["auto", "quarter", "full"] = "auto"
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What to play."""

    text: str
    kind: Kind = "policy"
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int | None = None
    """Of all turns together, beside `rollout.max_turn_tokens` for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One question about one picture."""

    model: str
    question: Question
    picture: bytes | str
    """The encoded picture, or the http(s) URL where it lies."""
    streams: bool
    includes_usage: bool
    """Whether a stream ends with the usage."""


def parse_request(body: bytes, *, max_picture_bytes: int, allows_remote: bool = False) -> ChatRequest:
    """The request in `body`.

    Raises:
        ApiError: 400, or 413 where the picture is too large.
    """
    fields = _without_neutral(_read_json(body))
    try:
        parsed = _Body.model_validate(fields)
    except ValidationError as error:
        raise _explained(error) from None
    question, urls = _question_and_urls(parsed.messages)
    if len(urls) != 1:
        raise bad_request(
            f"{ONE_PICTURE}, and the request has {len(urls)}: send one image_url part with a data URI",
            param="messages",
            code="invalid_number_of_images",
        )
    options = parsed.stream_options
    if options is not None and not parsed.stream:
        raise bad_request("stream_options needs stream=true", param="stream_options")
    return ChatRequest(
        model=parsed.model,
        question=Question(
            text=question,
            kind=KINDS[parsed.resolution],
            temperature=parsed.temperature,
            top_p=parsed.top_p,
            seed=parsed.seed,
            max_tokens=parsed.max_completion_tokens or parsed.max_tokens,
        ),
        picture=_picture(urls[0], max_bytes=max_picture_bytes, allows_remote=allows_remote),
        streams=parsed.stream,
        includes_usage=options is not None and options.include_usage,
    )


def _read_json(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body.decode("utf-8"), object_pairs_hook=unique_keys, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise bad_request(f"the body is not UTF-8: {error.reason} at byte {error.start}", code="invalid_json") from None
    except RecursionError:
        raise bad_request("the body is not usable JSON: nested too deeply", code="invalid_json") from None
    except ValueError as error:
        raise bad_request(f"the body is not usable JSON: {error}", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise bad_request("the body must be a JSON object", code="invalid_json")
    return fields


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _without_neutral(fields: dict[str, Any]) -> dict[str, Any]:
    """What is left of the fields that are set; ApiError where one of NEUTRAL asks for something."""
    fields = {name: value for name, value in fields.items() if value is not None and name not in IGNORED}
    for name, (neutral, reason) in NEUTRAL.items():
        value = fields.pop(name, neutral[0])
        if not any(value == each and type(value) in _like(each) for each in neutral):
            only = " or ".join(map(json.dumps, neutral))
            raise bad_request(f"{name} must be {only}: {reason}", param=name, code="unsupported_parameter")
    return fields


def _like(value: Any) -> tuple[type, ...]:
    """Types whose values may be compared with this one: in Python True is 1 as well."""
    return (int, float) if type(value) in (int, float) else (type(value),)


def _explained(error: ValidationError) -> ApiError:
    """The first problem that pydantic has found, with the path as a client would write it."""
    first = error.errors(include_url=False, include_input=False)[0]
    path = list(first["loc"])
    if path[2:3] == ["content"]:
        del path[4:5]  # the type of the part
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(path[-1]), _Body.model_fields, n=1) if len(path) == 1 else []
        hint = f"; did you mean {close[0]}?" if close else ""
        message = f"unrecognized request argument: {param[:80]}{hint}"
        return bad_request(message, param=param[:80], code="unknown_parameter")
    if first["type"] == "missing":
        return bad_request(f"{param} is missing", param=param, code="missing_required_parameter")
    if path[2:3] == ["role"]:
        detail = f"{ONE_PICTURE}: send a user message, with a system message if needed, and no earlier turns"
        return bad_request(f"{param} must be user, system or developer; {detail}", param=param)
    return bad_request(f"{param or 'a field'}: {first['msg']}", param=param)


def _question_and_urls(messages: Sequence[_Message]) -> tuple[str, list[str]]:
    """All text, system messages first as a client sends them, and the addresses of all pictures."""
    texts: list[str] = []
    urls: list[str] = []
    if sum(message.role == "user" for message in messages) != 1:
        raise bad_request(f"there must be one user message: {ONE_PICTURE}", param="messages")
    for index, message in enumerate(messages):
        for part in message.content:
            if isinstance(part, _Text):
                texts.append(part.text)
            elif message.role != "user":
                raise bad_request("a picture must be in the user message", param=f"messages[{index}].content")
            else:
                urls.append(part.image_url.url)
    question = "\n".join(text.strip() for text in texts if text.strip())
    if not question:
        raise bad_request("there is no question: add a text part to the user message", param="messages")
    if len(question) > MAX_QUESTION_CHARS:
        raise bad_request(
            f"the question has {len(question)} characters, at most {MAX_QUESTION_CHARS} are read",
            param="messages",
            code="context_length_exceeded",
        )
    try:
        question.encode()
    except UnicodeEncodeError:
        raise bad_request("the question holds half of a surrogate pair", param="messages") from None
    return question, urls


def _picture(url: str, *, max_bytes: int, allows_remote: bool) -> bytes | str:
    if url[:5].lower() == "data:":
        return _from_data_uri(url, max_bytes)
    try:
        scheme = urlsplit(url).scheme.lower()
    except ValueError as error:
        raise bad_picture(f"the picture's URL is invalid: {error}") from None
    if scheme not in ("http", "https"):
        raise bad_picture("the picture must be a data URI, such as data:image/png;base64,...")
    if not allows_remote:
        raise bad_picture("remote pictures are off on this server: send a data URI (data:image/png;base64,...)")
    return url


def _from_data_uri(url: str, max_bytes: int) -> bytes:
    header, comma, content = url.partition(",")
    mime, *options = header[5:].split(";")
    if not comma or "base64" not in [option.strip().lower() for option in options]:
        raise bad_picture("the picture's data URI must be data:image/png;base64,...")
    if mime.strip().lower() not in MIME_TYPES:
        raise bad_picture(f"the picture is declared as {mime[:40]!r}; it must be one of {', '.join(MIME_TYPES)}")
    if (num_bytes := math.ceil(len(content) * 3 / 4)) > max_bytes + 3:
        raise too_large(num_bytes, max_bytes)
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_picture(f"the picture is not base64: {error}") from None


def too_large(num_bytes: int, max_bytes: int) -> ApiError:
    """The refusal of a picture of that many bytes."""
    message = f"the picture has {num_bytes} bytes, at most {max_bytes} are read"
    return ApiError(message, status=413, param="messages", code="image_too_large")
