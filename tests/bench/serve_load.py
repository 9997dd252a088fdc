"""1,000 mixed requests, 64 at a time, through the official client: our endpoint beside plain vLLM, always-full.

    uv run python -m tests.bench.serve_load [--json] [--policy configs/tiny] [--requests 1000] [--concurrency 64]
    uv run python -m tests.bench.serve_load --shape 3b --gpus 1 --side 1008 --json

The shapes task: each picture is played once before anything is timed, which tells whether the policy asks about it and
what it replies. A timed request shows a copy of a picture that no cache knows, and has to get the reply of its own
picture. With a `--shape`, weights are random: whether a question is asked about is forced (`forced_policy.py`, in this
bench only), replies are not looked at, and a request is known by its visual tokens.

`time` is the time of a request against plain vLLM's, which gets half as many, `tokens` the visual tokens against
always-full. The limit of both is 1/4 + p, where p is the share of requests in which the policy asked.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Any

import numpy as np
import ray
from openai import APIError, AsyncOpenAI
from PIL import Image, PngImagePlugin

from actors.data.shapes import draw_row, encode_png, paint
from actors.images import ViewSpec, num_visual_tokens, view_size
from actors.prompts import load_prompt_style
from cluster.policies import policy_config
from cluster.runtime.connect import connect
from cluster.serving.app import ServeSettings
from cluster.serving.deployment import served
from cluster.serving.policy import start_policy
from cluster.serving.settings import serving_config
from configs.ranges import Range
from configs.schema import Config
from tests.bench.forced_policy import ASK, start_forced
from tests.bench.playing import bench_config

SHARES = (0.3, 0.7)
NUM_PICTURES = 128
START_S = 240.0
MODEL = "policy"
SIZES = ((1.0, 1.0), (1.25, 0.75), (0.75, 1.25), (0.5, 1.5))
"""Of pictures with random weights, in units of `--side`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request."""

    picture: bytes
    question: str
    resolution: str
    expected: tuple[Any, ...] | None
    """What identifies the right reply; None where it is not known yet."""
    streams: bool
    truth: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    text: str
    asked: bool
    spent: int
    always_full: int
    latency_s: float

    def mark(self, *, has_text: bool) -> tuple[Any, ...]:
        return (self.asked, self.spent, *([self.text] if has_text else []))


async def send(client: AsyncOpenAI, job: Job, **fields: Any) -> Reply:
    url = f"data:image/png;base64,{base64.b64encode(job.picture).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": job.question}]
    extra = {"resolution": job.resolution} if job.resolution else {}
    started = time.perf_counter()
    call: Any = partial(
        client.chat.completions.create,
        model=MODEL,
        messages=[{"role": "user", "content": content}],
        temperature=0.0,
        extra_body={**extra, **fields},
    )
    if job.streams:
        parts, usage = [], None
        async for chunk in await call(stream=True, stream_options={"include_usage": True}):
            usage = chunk.usage or usage
            parts += [choice.delta.content or "" for choice in chunk.choices]
        text = "".join(parts)
    else:
        reply = await call()
        text, usage = reply.choices[0].message.content or "", reply.usage
    visual = getattr(usage, "visual_tokens", None) or {"spent": 0, "always_full": 0}
    return Reply(
        text=text,
        asked=bool(getattr(usage, "asked", False)),
        spent=visual["spent"],
        always_full=visual["always_full"],
        latency_s=time.perf_counter() - started,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """All replies to a list of jobs."""

    seconds: float
    replies: tuple[Reply | str, ...]
    """A text is an error."""

    def figures(self, jobs: Sequence[Job], *, has_text: bool) -> dict[str, float]:
        got = [(job, reply) for job, reply in zip(jobs, self.replies, strict=True) if isinstance(reply, Reply)]
        latencies = quantiles([reply.latency_s for _, reply in got], n=100)
        wrong = [job for job, reply in got if job.expected not in (None, reply.mark(has_text=has_text))]
        known = [(job, reply) for job, reply in got if job.truth is not None]
        return {
            "requests": len(jobs),
            "errors": len(jobs) - len(got),
            "wrong_pairings": len(wrong),
            "seconds": self.seconds,
            "requests_per_s": len(got) / self.seconds,
            "p50_s": latencies[49],
            "p95_s": latencies[94],
            "asked": sum(reply.asked for _, reply in got) / len(got),
            "tokens": sum(reply.spent for _, reply in got) / max(1, sum(reply.always_full for _, reply in got)),
            "accuracy": sum(str(job.truth) in reply.text for job, reply in known) / max(1, len(known)),
        }


async def run_phase(address: str, jobs: Sequence[Job], *, concurrency: int, **fields: Any) -> Phase:
    client = AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=300)
    places = asyncio.Semaphore(concurrency)

    async def one(job: Job) -> Reply | str:
        async with places:
            try:
                return await send(client, job, **fields)
            except APIError as error:
                return f"{type(error).__name__}: {error}"

    started = time.perf_counter()
    async with client:
        replies = await asyncio.gather(*map(one, jobs))
    print(f"{len(jobs)} requests in {time.perf_counter() - started:.1f} s", file=sys.stderr)
    for error in {reply for reply in replies if isinstance(reply, str)}:
        print(error[:300], file=sys.stderr)
    return Phase(seconds=time.perf_counter() - started, replies=tuple(replies))


def shapes_jobs(seed: int) -> list[Job]:
    """One job per picture of the shapes task."""
    rng = np.random.default_rng(seed)
    rows = [draw_row(rng, "heldout", needs_full_share=0.5) for _ in range(NUM_PICTURES)]
    return [
        Job(
            picture=encode_png(paint(row.scene)),
            question=row.question,
            resolution="auto",
            expected=None,
            streams=False,
            truth=row.answer,
        )
        for row in rows
    ]


def fresh_copy(picture: bytes, index: int, *, changes_pixel: bool = False) -> bytes:
    """The same picture in other bytes, by which our caches know it; with a pixel of a corner changed for vLLM's own."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    if changes_pixel:
        image.putpixel((image.width - 1, image.height - 1), (index % 256, index // 256 % 256, 128))
    note, out = PngImagePlugin.PngInfo(), io.BytesIO()
    note.add_text("copy", str(index))
    image.save(out, "PNG", pnginfo=note)
    return out.getvalue()


def mix(jobs: Sequence[Job], asks: Sequence[bool], share: float, num_jobs: int, *, seed: int) -> list[Job]:
    """`num_jobs` copies of jobs, of which this share is asked about; every fourth is streamed."""
    rng = random.Random(seed)
    pools = {
        wanted: [job for job, asked in zip(jobs, asks, strict=True) if asked == wanted] for wanted in (True, False)
    }
    num_asked = round(share * num_jobs)
    drawn = [rng.choice(pools[index < num_asked]) for index in range(num_jobs)]
    rng.shuffle(drawn)
    return [
        replace(job, picture=fresh_copy(job.picture, seed * num_jobs + index), streams=index % 4 == 0)
        for index, job in enumerate(drawn)
    ]


def smooth_jobs(config: Config, side: int, num_jobs: int, share: float, *, seed: int) -> list[Job]:
    """Pictures of soft noise in several sizes, known by their visual tokens; this share of them is asked about."""
    rng = np.random.default_rng(seed)
    model = config.model
    spec = ViewSpec.from_model(model.path, min_pixels=model.min_pixels, max_pixels=model.max_pixels)
    asks = rng.permutation(num_jobs) < round(share * num_jobs)
    noise = rng.integers(0, 256, (num_jobs, 12, 12, 3), dtype=np.uint8)

    def job(index: int) -> Job:
        across, down = SIZES[index % len(SIZES)]
        size, out = (int(across * side), int(down * side)), io.BytesIO()
        Image.fromarray(noise[index]).resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=85)
        full = num_visual_tokens(*view_size(size[1], size[0], spec), spec)
        return Job(
            picture=out.getvalue(),
            question=f"{ASK if asks[index] else ''} what is it?",
            resolution="auto",
            expected=(bool(asks[index]), full // 4 + (full if asks[index] else 0)),
            streams=False,
        )

    with ThreadPoolExecutor() as threads:
        return list(threads.map(job, range(num_jobs)))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def plain_vllm(config: Config, *, on_gpu: bool) -> Iterator[str]:
    """vLLM's own server with the same model and limits."""
    model, rollout, port = config.model, config.rollout, free_port()
    pixels = {"min_pixels": model.min_pixels, "max_pixels": model.max_pixels}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model.path, "--port", str(port)]
    command += ["--served-model-name", MODEL, "--dtype", model.dtype, "--max-model-len", str(rollout.max_model_len)]
    command += ["--limit-mm-per-prompt", '{"image": 1}', "--mm-processor-kwargs", json.dumps(pixels)]
    command += ["--generation-config", "vllm", "--host", "127.0.0.1", "--no-enable-log-requests"]
    command += ["--load-format", "dummy" if model.load == "random" else "auto"]
    command += ["--gpu-memory-utilization", str(rollout.gpu_memory_fraction if on_gpu else 0.3)]
    command += ["--enforce-eager"] if rollout.enforce_eager else []
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if not on_gpu:
        threads = str(rollout.num_threads)
        environment |= {"OMP_NUM_THREADS": threads, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(rollout.kv_cache_gib)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    address, deadline_at = f"http://127.0.0.1:{port}", time.monotonic() + START_S
    try:
        while True:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"{address}/health", timeout=5)
                break
            if process.poll() is not None or time.monotonic() > deadline_at:
                raise RuntimeError("vLLM's server did not start")
            time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def measure(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    is_tiny, on_gpu, number = arguments.shape == "tiny", arguments.gpus > 0, arguments.requests
    if is_tiny:
        config = policy_config(Path(arguments.policy), None, arguments.overrides).config
    else:
        overrides = [f"rollout.max_turn_tokens={arguments.max_tokens}", *arguments.overrides]
        config = bench_config(arguments.shape, side=arguments.side, on_gpu=on_gpu, overrides=overrides)
    play = partial(run_phase, concurrency=arguments.concurrency)
    phases: dict[str, tuple[Phase, list[Job]]] = {}
    settings = ServeSettings(model=MODEL, created=int(time.time()), max_running=arguments.concurrency)
    engine, port = serving_config(config, max_running=arguments.concurrency), free_port()
    start = start_policy if is_tiny else start_forced
    connect()
    with served(engine, settings, replicas=Range(minimum=1, maximum=1), host="127.0.0.1", port=port, start=start) as to:
        mixes: dict[str, list[Job]]
        if is_tiny:
            jobs = shapes_jobs(seed=0)
            quiet = asyncio.run(play(to, jobs))
            known = [
                (replace(job, expected=reply.mark(has_text=True)), reply.asked)
                for job, reply in zip(jobs, quiet.replies, strict=True)
                if isinstance(reply, Reply)
            ]
            assert len(known) == len(jobs), "every picture gets its reply"
            jobs, asks = [job for job, _ in known], [asked for _, asked in known]
            mixes = {f"p={share:g}": mix(jobs, asks, share, number, seed=n) for n, share in enumerate(SHARES, 1)}
            full = [replace(job, resolution="full", expected=None) for job in mix(jobs, asks, 0.5, number, seed=5)]
        else:
            mixes = {
                f"p={share:g}": smooth_jobs(config, arguments.side, number, share, seed=n)
                for n, share in enumerate(SHARES, 1)
            }
            full = [
                replace(job, resolution="full", expected=None)
                for job in smooth_jobs(config, arguments.side, number, 0.0, seed=5)
            ]
            asyncio.run(play(to, smooth_jobs(config, arguments.side, 64, 0.5, seed=9)))
        for name, chosen in {**mixes, "ours, full": full[: number // 4]}.items():
            phases[name] = (asyncio.run(play(to, chosen)), chosen)
    ray.shutdown()
    style = load_prompt_style(config.model.prompt)
    plain = [
        replace(job, resolution="", question=style.user_without_tool.format(question=job.question))
        for job in full[: number // 2]
    ]
    fields = {"max_tokens": config.rollout.max_turn_tokens, **({} if is_tiny else {"ignore_eos": True})}
    with plain_vllm(config, on_gpu=on_gpu) as to:
        warm = plain[:16] if is_tiny else smooth_jobs(config, arguments.side, 64, 0.0, seed=9)
        asyncio.run(run_phase(to, [replace(job, resolution="") for job in warm], concurrency=64, **fields))
        if is_tiny:
            plain = [
                replace(job, picture=fresh_copy(job.picture, n, changes_pixel=True)) for n, job in enumerate(plain)
            ]
        phases["plain vLLM"] = (asyncio.run(play(to, plain, **fields)), plain)
    found = {name: phase.figures(jobs, has_text=is_tiny) for name, (phase, jobs) in phases.items()}
    for name, figures in found.items():
        figures["limit"] = 0.25 + figures["asked"] if name in mixes else 1.0
        figures["time"] = found["plain vLLM"]["requests_per_s"] / figures["requests_per_s"]
        figures["time_against_ours"] = found["ours, full"]["requests_per_s"] / figures["requests_per_s"]
        for key in ("time", "tokens", "time_against_ours"):
            figures[f"{key}/limit"] = figures[key] / figures["limit"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--policy", default="configs/tiny", help="run, checkpoint or export of the shapes task")
    parser.add_argument("--shape", default="tiny", help="tiny, or a shape of model_shape.py with random weights")
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--side", type=int, default=1008, help="pixels of a square picture's side, with --shape")
    parser.add_argument("--max-tokens", type=int, default=16, help="generated per turn, with --shape")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    found = measure(arguments)
    columns = list(next(iter(found.values())))
    print(f"{'':12}" + "".join(f"{column:>{max(9, len(column)) + 2}}" for column in columns))
    for name, figures in found.items():
        print(f"{name:12}" + "".join(f"{figures[column]:{max(9, len(column)) + 2}.3g}" for column in columns))
    if arguments.json:
        print(json.dumps(found))
    if any(figures["errors"] or figures["wrong_pairings"] for figures in found.values()):
        raise SystemExit("there were errors or wrong pairings")


if __name__ == "__main__":
    main()
