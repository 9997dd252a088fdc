"""`visionthink ask` and `visionthink serve`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cluster.shell import Json, Overrides, console, print_json, report_errors, run_async, warn_user
from cluster.stopping import Stopping

Policy = Annotated[
    Path | None,
    typer.Option(
        help="A run, RUN/checkpoints/step-N, or an export (or any Hugging Face folder of a supported family). "
        "Default: model.path of the config."
    ),
]
Config = Annotated[
    str | None,
    typer.Option(
        "--config", "-c", help="Settings by name or YAML file. Default: those of the policy's run or export, or tiny."
    ),
]
Resolution = Annotated[
    str,
    typer.Option(
        help="auto: the quarter view, and the full one if the policy asks. quarter or full: that view alone, no tool."
    ),
]


def ask(
    image: Annotated[Path, typer.Argument(help="JPEG, PNG or WebP file.")],
    question: Annotated[str, typer.Argument(help="The question about it.")],
    overrides: Overrides = None,
    policy: Policy = None,
    config: Config = None,
    resolution: Resolution = "auto",
    as_json: Json = False,
) -> None:
    """Ask a policy about a picture, and see both turns and what they cost.

    The policy is shown a quarter of the visual tokens. It answers, or asks for
    the full view and answers then. Greedy. Example:

    visionthink ask photo.jpg "what colour is the shape?" --policy runs/tiny
    """
    with report_errors():
        from cluster.serving.policy import start_policy
        from cluster.serving.requests import KINDS, Question
        from cluster.serving.settings import policy_config, serving_config

        if resolution not in KINDS:
            raise ValueError(f"--resolution {resolution!r} is invalid: must be {', '.join(KINDS)}")
        try:
            encoded = image.expanduser().read_bytes()
        except OSError as error:
            raise ValueError(f"{image} cannot be read: {error.strerror}") from error
        settings, _ = policy_config(policy, config, overrides or [])
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
                {"view": turn.view, "visual_tokens": turn.num_visual_tokens, "text": turn.text}
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
            asked = "[yellow]asks for the full view[/]\n" if self._num_turns > 1 else ""
            lead = "\n" if self._num_turns > 1 else ""
            title = f"turn {self._num_turns}: {event.view} view, {event.num_visual_tokens} visual tokens"
            self._console.print(f"{lead}{asked}[cyan]{title}[/]")
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
        asked = "asked for the full view" if answered.episode.asked else "did not ask for the full view"
        self._console.print(
            f"\n\n[dim]{answered.episode.status.value}; {asked}: {spent} visual tokens, always-full {full}: {told}; "
            f"{answered.episode.num_generated_tokens} tokens generated in {answered.seconds:.2f} s[/]"
        )


def serve(
    overrides: Overrides = None,
    policy: Policy = None,
    config: Config = None,
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
    max_picture_mib: Annotated[int, typer.Option(min=1, help="Size of an encoded picture; more gets 413.")] = 20,
) -> None:
    """Serve a policy behind an OpenAI-compatible endpoint that plays both turns within one request.

    Clients send a question with one picture as a data URI, as to any vision
    model. Per request, `resolution` may be auto, quarter or full. `usage` tells
    the visual tokens spent and saved, and whether the policy asked. Ctrl-C or
    SIGTERM finishes the requests in progress. Example:

    visionthink serve --policy runs/tiny --replicas 1..4 --api-key-file keys
    """
    with report_errors():
        from cluster.serving.app import ServeSettings, digest_key
        from cluster.serving.settings import policy_config, read_keys, serving_config
        from configs.ranges import parse_range

        size, keys = parse_range("--replicas", replicas), read_keys(api_key_file) if api_key_file else []
        settings, found = policy_config(policy, config, overrides or [])
        limits = ServeSettings(
            model=name or found,
            created=int(time.time()),
            key_digests=frozenset(map(digest_key, keys)),
            allow_remote_images=allow_remote_images,
            max_picture_bytes=max_picture_mib << 20,
            max_body_bytes=(max_picture_mib << 20) * 3 // 2,
            max_running=max_running,
            max_waiting=max_waiting,
        )
        if not keys and host not in ("127.0.0.1", "::1", "localhost"):
            warn_user(f"anybody who reaches {host}:{port} can use this policy: --api-key-file asks for a key")
        _serve(serving_config(settings, max_running=max_running), limits, replicas=size, host=host, port=port)


def _serve(settings: Any, limits: Any, **where: Any) -> None:
    """Until a signal comes."""
    from cluster.runtime.connect import connect
    from cluster.serving.deployment import DRAIN_S, served

    async def run() -> None:
        connect()
        endpoint = served(settings, limits, **where)
        address = await asyncio.to_thread(endpoint.__enter__)
        try:
            console.print(f"{limits.model} is served at {address}/v1; Ctrl-C ends it", highlight=False)
            await asyncio.Event().wait()
        finally:
            await asyncio.to_thread(endpoint.__exit__, None, None, None)

    run_async(run(), Stopping(grace_s=DRAIN_S + 15.0))
