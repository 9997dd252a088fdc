"""An endpoint without a server and without vLLM: the ASGI application over a scripted engine, and requests for it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
from PIL import Image
from starlette.applications import Starlette

from actors.episode import VersionSpan
from actors.errors import RolloutError, SampleError
from actors.fleet.cutting import PictureCutter
from actors.images import ViewSpec
from actors.play import Completion, OnTokens, Sampling, ShownImage
from actors.prompts import ChatRenderer, load_prompt_style, load_tokenizer
from cluster.serving.app import ServeSettings, build_app
from cluster.serving.policy import ServedPolicy
from configs.schema import DataConfig, ModelConfig, RolloutConfig
from tests.fakes import ASK

TINY = "configs/tiny"
COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220)}
LOOK = "closely"
"""A question with this word makes the scripted policy ask."""


class ScriptedEngine:
    """Says the colour of the picture, token by token; asks first where the question says `LOOK`."""

    def __init__(self) -> None:
        self.tokenizer = load_tokenizer(TINY)
        self.renderer = ChatRenderer(self.tokenizer, load_prompt_style("tiny"))
        self.samplings: list[Sampling] = []
        self.script: tuple[str, ...] = ()
        """What it says in each turn instead."""
        self.num_running = 0
        self.num_cancelled = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.is_shut_down = False

    async def __call__(
        self,
        prompt_ids: tuple[int, ...],
        images: tuple[ShownImage, ...],
        sampling: Sampling,
        on_tokens: OnTokens | None = None,
    ) -> Completion:
        self.samplings.append(sampling)
        question = self.tokenizer.decode(prompt_ids)
        if "poison" in question:
            raise SampleError("vLLM failed at a request")
        if "death" in question:
            raise RolloutError("vLLM's engine died")
        self.num_running += 1
        try:
            return await self._sample(question, images, sampling, on_tokens)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.num_running -= 1

    async def _sample(
        self, question: str, images: tuple[ShownImage, ...], sampling: Sampling, on_tokens: OnTokens | None
    ) -> Completion:
        num_turns_before = question.count("assistant\n") - 1
        text = self.script[num_turns_before] if self.script else self._say(question, images)
        ids = [*self.tokenizer.encode(text, add_special_tokens=False), self.renderer.end_id]
        is_cut = len(ids) > sampling.max_tokens
        ids = ids[: sampling.max_tokens]
        for token_id in ids:
            await asyncio.sleep(0)
            if on_tokens is not None:
                on_tokens((token_id,))
        await self.gate.wait()
        return Completion(
            token_ids=tuple(ids),
            logprobs=tuple(-0.5 for _ in ids),
            finish_reason="length" if is_cut else "stop",
            version_spans=(VersionSpan(version=0, num_tokens=len(ids)),),
        )

    def _say(self, question: str, images: tuple[ShownImage, ...]) -> str:
        pixel = images[-1].picture.getpixel((0, 0))
        colour = next(name for name, value in COLOURS.items() if value == pixel)
        if LOOK in question and len(images) == 1:
            return ASK
        return f"<think>clear é</think>\n<answer> {colour} </answer>"

    async def check_health(self) -> None:
        return

    def shutdown(self) -> None:
        self.is_shut_down = True


def policy_of(engine: ScriptedEngine, rollout: RolloutConfig | None = None, **limits: Any) -> ServedPolicy:
    spec = ViewSpec.from_model(ModelConfig(path=TINY))
    return ServedPolicy(engine, engine.renderer, PictureCutter(spec, DataConfig(**limits)), rollout or RolloutConfig())


class Endpoint:
    """The application, and a client for it."""

    def __init__(self, app: Starlette, engine: ScriptedEngine) -> None:
        self.app, self.engine = app, engine
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://endpoint", timeout=20)

    async def post(self, content: bytes | dict[str, Any], **headers: str) -> httpx.Response:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        sent = {"content-type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
        return await self.client.post("/v1/chat/completions", content=body, headers=sent)


@contextlib.asynccontextmanager
async def endpoint(
    limits: dict[str, Any] | None = None, *, rollout: RolloutConfig | None = None, **settings: Any
) -> AsyncIterator[Endpoint]:
    engine = ScriptedEngine()

    async def start() -> ServedPolicy:
        return policy_of(engine, rollout, **(limits or {}))

    app = build_app(start, ServeSettings(model="tiny", created=1, **settings))
    async with app.router.lifespan_context(app):
        yield Endpoint(app, engine)
    assert engine.is_shut_down


def encoded(colour: str = "red", size: tuple[int, int] = (224, 224), kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, COLOURS[colour]).save(out, kind, lossless=True) if kind == "WEBP" else Image.new(
        "RGB", size, COLOURS[colour]
    ).save(out, kind)
    return out.getvalue()


def data_uri(content: bytes, mime: str = "image/png") -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def chat(colour: str = "red", question: str = "which colour?", **fields: Any) -> dict[str, Any]:
    content = [image_part(data_uri(encoded(colour))), text_part(question)]
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], **fields}


def events_of(stream: str) -> list[dict[str, Any]]:
    """The objects of a stream, which has to end with [DONE]."""
    *events, done = [line.removeprefix("data: ") for line in stream.split("\n\n") if line]
    assert done == "[DONE]"
    return [json.loads(line) for line in events]
