"""`visionthink ask` and `visionthink serve`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from cluster.shell import (
    Json,
    Overrides,
    PolicyConfigName,
    PolicyPath,
    console,
    print_json,
    report_errors,
    run_async,
    warn_user,
)
from cluster.stopping import Stopping

Resolution = Annotated[
    str,
    typer.Option(
        help="auto: the quarter view, and what the policy calls for. quarter or full: that view alone, no tools."
    ),
]


def ask(
    image: Annotated[Path, typer.Argument(help="JPEG, PNG or WebP file.")],
    question: Annotated[str, typer.Argument(help="The question about it.")],
    overrides: Overrides = None,
    policy: PolicyPath = None,
    config: PolicyConfigName = None,
    resolution: Resolution = "auto",
    as_json: Json = False,
) -> None:
    """Ask a policy about a picture, and see all turns and what they cost.

    The policy is shown a quarter of the visual tokens. It answers, or calls a
    tool for the full view or a part of it, and answers then. Greedy. Example:

    visionthink ask photo.jpg "what colour is the shape?" --policy runs/tiny
    """
    with report_errors():
        from cluster.policies import policy_config
        from cluster.serving.policy import start_policy
        from cluster.serving.requests import KINDS, Question
        from cluster.serving.settings import serving_config

        if resolution not in KINDS:
            raise ValueError(f"--resolution {resolution!r} is invalid: must be {', '.join(KINDS)}")
        try:
            encoded = image.expanduser().read_bytes()
        except OSError as error:
            raise ValueError(f"{image} cannot be read: {error.strerror}") from error
        settings = policy_config(policy, config, overrides or []).config
        screen = None if as_json else _Screen()

        async def play() -> Any:
            served = await start_policy(serving_config(settings, max_running=1))
            try:
                asked = Question(text=question, kind=KINDS[resolution])
                return await served.answer(asked, await served.cut(encoded), screen.show if screen else None)
            finally:
                served.shutdown()

        with _engine_log():
            answered = _run_api(play())
            gc.collect()  # vLLM says more when its engine is collected later, at the end of the process
        if screen:
            screen.summary(answered)
        else:
            from cluster.serving.replies import usage

            turns = [
                {
                    "view": None if turn.view is None else str(turn.view),
                    "tool": turn.tool,
                    "visual_tokens": turn.num_visual_tokens,
                    "text": turn.text,
                    "fault": turn.fault,
                }
                for turn in answered.episode.turns
            ]
            texts = {"answer": answered.text("answer"), "reasoning": answered.text("reasoning")}
            status = {"status": answered.episode.status.value, "seconds": round(answered.seconds, 3)}
            print_json({**texts, **status, "turns": turns, "usage": usage(answered)})


@contextlib.contextmanager
def _engine_log() -> Iterator[None]:
    """What the engine's processes say goes into a file, which stays and is named if the body fails."""
    with tempfile.NamedTemporaryFile(prefix="visionthink-ask-", suffix=".log", delete=False) as log:
        terminal = os.dup(2)
        os.dup2(log.fileno(), 2)
    is_done = False
    try:
        yield
        is_done = True
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        if is_done:
            os.unlink(log.name)
        else:
            warn_user(f"log of the engine: {log.name}")


def _run_api(main: Any) -> Any:
    from cluster.serving.errors import ApiError

    try:
        return run_async(main)
    except ApiError as error:
        raise ValueError(error.message) from error


class _Screen:
    """Turns on the terminal as they come: reasoning dimmed, the answer bold."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._console.print("[dim]starting the engine[/]")
        self._num_turns = 0
        self._channel: str | None = None

    def show(self, event: Any) -> None:
        from cluster.serving.policy import TURN_BREAK, TurnStarted

        if isinstance(event, TurnStarted):
            self._num_turns, self._channel = self._num_turns + 1, None
            called = f"calls {event.tool}" if event.tool else "calls what it may not"
            why_not = escape(f"why not: {event.refusal}")
            shown = why_not if event.view is None else f"{event.view} view, {event.num_visual_tokens} visual tokens"
            lead = f"\n[yellow]{called}[/]\n" if self._num_turns > 1 else ""
            self._console.print(f"{lead}[cyan]turn {self._num_turns}: {shown}[/]", soft_wrap=True)
            return
        if self._channel not in (None, event.channel):
            self._console.print()
        self._channel = event.channel
        style = "dim" if event.channel == "reasoning" else "bold"
        self._console.print(event.text.removeprefix(TURN_BREAK), style=style, markup=False, end="")

    def summary(self, answered: Any) -> None:
        spent, full = answered.episode.num_visual_tokens, answered.num_full_tokens
        saved = full - spent
        told = f"{saved} saved ({saved / full:.0%})" if saved >= 0 else f"{-saved} more"
        tools = Counter(turn.tool for turn in answered.episode.calls)
        called = ", ".join(f"{name} called {'once' if n == 1 else f'{n} times'}" for name, n in tools.items())
        told = f"{called or 'no tool called'}: {spent} visual tokens, always-full {full}: {told}"
        fault = answered.episode.turns[-1].fault
        status = answered.episode.status.value + (f" ({fault})" if fault else "")
        generated = f"{answered.episode.num_generated_tokens} tokens generated in {answered.seconds:.2f} s"
        self._console.print(f"\n\n[dim]{escape(status)}; {told}\n{generated}[/]", soft_wrap=True)


def serve(
    overrides: Overrides = None,
    policy: PolicyPath = None,
    config: PolicyConfigName = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all interfaces.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with the accepted API keys, one per line. Default: no key is needed.")
    ] = None,
    replicas: Annotated[str, typer.Option(help="Engines: a number, or MIN..MAX, scaled by load.")] = "1",
    name: Annotated[str | None, typer.Option(help="Model name for clients. Default: of the run or folder.")] = None,
    allow_remote_images: Annotated[
        bool, typer.Option("--allow-remote-images", help="Fetch pictures by http(s) URL, from public addresses only.")
    ] = False,
    max_running: Annotated[int, typer.Option(min=1, help="Requests that one engine plays at a time.")] = 64,
    max_waiting: Annotated[int, typer.Option(min=0, help="Requests that may wait per engine; others get 429.")] = 256,
    max_waiting_mib: Annotated[
        int, typer.Option(min=1, help="Of bodies and encoded pictures that wait per engine; what exceeds it gets 429.")
    ] = 1024,
    max_picture_mib: Annotated[int, typer.Option(min=1, help="Size of an encoded picture; more gets 413.")] = 20,
) -> None:
    """Serve a policy behind an OpenAI-compatible endpoint that plays all turns within one request.

    Clients send a question with one picture as a data URI, as to any vision
    model. Per request, `resolution` may be auto, quarter or full. `usage` tells
    the visual tokens spent and saved, and the calls of each tool. Ctrl-C or
    SIGTERM finishes the requests in progress. Example:

    visionthink serve --policy runs/tiny --replicas 1..4 --api-key-file keys
    """
    with report_errors():
        from cluster.policies import policy_config
        from cluster.serving.app import ServeSettings, digest_key
        from cluster.serving.settings import read_keys, serving_config
        from configs.ranges import parse_range

        size, keys = parse_range("--replicas", replicas), read_keys(api_key_file) if api_key_file else []
        chosen = policy_config(policy, config, overrides or [])
        limits = ServeSettings(
            model=name or chosen.name,
            created=int(time.time()),
            key_digests=frozenset(map(digest_key, keys)),
            allow_remote_images=allow_remote_images,
            max_picture_bytes=max_picture_mib << 20,
            max_body_bytes=(max_picture_mib << 20) * 3 // 2,
            max_running=max_running,
            max_waiting=max_waiting,
            max_waiting_bytes=max_waiting_mib << 20,
        )
        if not keys and host not in ("127.0.0.1", "::1", "localhost"):
            warn_user(f"anybody who reaches {host}:{port} can use this policy: --api-key-file asks for a key")
        _serve(serving_config(chosen.config, max_running=max_running), limits, replicas=size, host=host, port=port)


def _serve(settings: Any, limits: Any, **where: Any) -> None:
    """Until a signal comes."""
    from cluster.runtime.connect import connect
    from cluster.serving.deployment import DRAIN_S, served
    from cluster.serving.gateway import ENVIRONMENT

    stop = threading.Event()

    def serve_until_stopped() -> None:
        with served(settings, limits, stop=stop, **where) as address:
            console.print(f"{limits.model} is served at {address}/v1; Ctrl-C ends it", highlight=False)
            stop.wait()

    async def run() -> None:
        console.print("[dim]starting Ray and the first engine[/]", highlight=False)
        connect(ENVIRONMENT)
        serving = asyncio.ensure_future(asyncio.to_thread(serve_until_stopped))
        try:
            await asyncio.shield(serving)
        finally:
            stop.set()
            await asyncio.gather(serving, return_exceptions=True)

    run_async(run(), Stopping(grace_s=DRAIN_S + 15.0))
