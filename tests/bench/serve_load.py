"""1,000 mixed requests, 64 at a time, through the official client: our endpoint beside plain vLLM, always-full.

    uv run python -m tests.bench.serve_load [--json] [--policy configs/tiny] [--requests 1000] [--concurrency 64]
    uv run python -m tests.bench.serve_load --shape 3b --gpus 1 --pictures 1008,2016 --json

`--pictures` of `shapes` are those of the shapes task: each is played once before anything is timed, which tells whether
the policy asks about it and what it replies. A timed request shows a copy of a picture that no cache knows, and has to
get the reply of its own picture. A full view has 64 visual tokens there, beside 20 of text and up to 18 generated.
Pictures of a number of pixels a side are soft noise, for a model with random weights: whether a question is asked about
is forced (`forced_policy.py`, in this bench only), replies are not looked at, and a request is known by its visual
tokens. Of 672 x 672 pixels a full view has 576, as a chart of 800 x 560 has, or half a page of text.

`time` is the time of a request against plain vLLM's, `tokens` the visual tokens against always-full. The limit of both
is 1/4 + p, where p is the share of requests in which the policy asked. `engine` is the time of a request in the engine
alone (`serve_split.py`: same tokens, pictures cut in advance, no HTTP) against always-full there: what it has above the
limit no endpoint can mend. `overhead` is the time of a request against the engine alone, and `cpu_*_ms` the CPU time of
a request in each process; the client is one of them.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Any

import ray
from openai import APIError, AsyncOpenAI

from actors.prompts import load_prompt_style
from cluster.policies import policy_config
from cluster.runtime.connect import connect
from cluster.serving.app import ServeSettings
from cluster.serving.deployment import served
from cluster.serving.gateway import ENVIRONMENT
from cluster.serving.settings import serving_config
from configs.ranges import Range
from configs.schema import Config
from tests.bench.playing import bench_config
from tests.bench.serve_jobs import Job, fresh_copy, shapes_jobs, shapes_phases, smooth_jobs, smooth_phases
from tests.bench.serve_split import cpu_seconds, start_with_floor

START_S = 240.0
MODEL, SHAPES = "policy", "shapes"
MOST_ALONE = 256
"""Requests of a phase that the engine alone plays."""


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
    cpu_s: dict[str, float]
    """By process."""
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
            **{f"cpu_{kind}_ms": 1000 * seconds / len(jobs) for kind, seconds in self.cpu_s.items()},
            "cpu_ms": 1000 * sum(self.cpu_s.values()) / len(jobs),
        }


async def run_phase(address: str, jobs: Sequence[Job], *, concurrency: int, name: str = "warm", **fields: Any) -> Phase:
    client = AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=300)
    places = asyncio.Semaphore(concurrency)

    async def one(job: Job) -> Reply | str:
        async with places:
            try:
                return await send(client, job, **fields)
            except APIError as error:
                return f"{type(error).__name__}: {error}"

    before, started = cpu_seconds(), time.perf_counter()
    async with client:
        replies = await asyncio.gather(*map(one, jobs))
    seconds, after = time.perf_counter() - started, cpu_seconds()
    cpu_s = {kind: after[kind] - before[kind] for kind in after}
    print(f"{name}: {len(jobs)} requests in {seconds:.2f} s", file=sys.stderr)
    for error in {reply for reply in replies if isinstance(reply, str)}:
        print(error[:300], file=sys.stderr)
    return Phase(seconds=seconds, cpu_s=cpu_s, replies=tuple(replies))


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
    """The figures of each phase: of the shapes task, and of each size of pictures."""
    pictures, found = arguments.pictures.split(","), {}
    if SHAPES in pictures:
        found |= _measure(policy_config(Path(arguments.policy), None, arguments.overrides).config, [], arguments)
    if sides := [int(side) for side in pictures if side != SHAPES]:
        overrides = ["model.load=random", f"rollout.max_turn_tokens={arguments.max_tokens}", *arguments.overrides]
        config = bench_config(arguments.shape, side=max(sides), on_gpu=arguments.gpus > 0, overrides=overrides)
        found |= _measure(config, sides, arguments)
    return found


def _measure(config: Config, sides: Sequence[int], arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Without `sides`, of the shapes task."""
    is_shapes, on_gpu, number = not sides, arguments.gpus > 0, arguments.requests
    play = partial(run_phase, concurrency=arguments.concurrency)
    phases: dict[str, tuple[Phase, list[Job]]] = {}
    floor = Path(tempfile.mkdtemp()) / "floor.json"
    settings = ServeSettings(model=MODEL, created=int(time.time()), max_running=arguments.concurrency)
    engine, port = serving_config(config, max_running=arguments.concurrency), free_port()
    alone = {"number": min(number, MOST_ALONE), "concurrency": arguments.concurrency}
    start = partial(start_with_floor, sides=sides, file=str(floor), **alone)
    connect(ENVIRONMENT)
    with served(engine, settings, replicas=Range(minimum=1, maximum=1), host="127.0.0.1", port=port, start=start) as to:
        if is_shapes:
            jobs = shapes_jobs(seed=0)
            known = [
                (replace(job, expected=reply.mark(has_text=True)), reply.asked)
                for job, reply in zip(jobs, asyncio.run(play(to, jobs)).replies, strict=True)
                if isinstance(reply, Reply)
            ]
            assert len(known) == len(jobs), "every picture gets its reply"
            chosen = shapes_phases(known, number, seed=1)
        else:
            asyncio.run(play(to, smooth_jobs(config, sides[0], 64, 0.5, seed=99)))
            chosen = smooth_phases(config, sides, number, seed=1)
        for name, jobs in chosen.items():
            phases[name] = (asyncio.run(play(to, jobs, name=name)), jobs)
        print(f"engine alone, requests/s: {floor.read_text()}", file=sys.stderr)
    ray.shutdown()
    with plain_vllm(config, on_gpu=on_gpu) as to:
        fields = {"max_tokens": config.rollout.max_turn_tokens, **({} if is_shapes else {"ignore_eos": True})}
        full = {name: jobs for name, jobs in chosen.items() if name.endswith("full")}
        warm = next(iter(full.values()))[:16] if is_shapes else smooth_jobs(config, sides[0], 64, 0.0, seed=98)
        asyncio.run(run_phase(to, [_plain(config, job) for job in warm], concurrency=64, **fields))
        for name, jobs in full.items():
            jobs = [_plain(config, job, copy=number if is_shapes else None) for number, job in enumerate(jobs)]
            phases[name.replace("full", "plain")] = (asyncio.run(play(to, jobs, name=f"plain {name}", **fields)), jobs)
    found = {name: phase.figures(jobs, has_text=is_shapes) for name, (phase, jobs) in phases.items()}
    _compare(found, json.loads(floor.read_text()))
    return found


def _plain(config: Config, job: Job, *, copy: int | None = None) -> Job:
    """The request as plain vLLM is asked; with a pixel changed in a copy."""
    style = load_prompt_style(config.model.prompt)
    picture = job.picture if copy is None else fresh_copy(job.picture, copy, changes_pixel=True)
    question = style.user_without_tool.format(question=job.question)
    return replace(job, picture=picture, resolution="", question=question, expected=None)


def _compare(found: dict[str, dict[str, float]], floor: dict[str, float]) -> None:
    """Add the ratios to the figures of each phase."""
    for name, figures in found.items():
        head = name[: name.rindex("p=") if "p=" in name else name.rindex(name.split()[-1])]
        figures["limit"] = 0.25 + figures["asked"] if "p=" in name else 1.0
        figures["time"] = found[f"{head}plain"]["requests_per_s"] / figures["requests_per_s"]
        figures["time_against_ours"] = found[f"{head}full"]["requests_per_s"] / figures["requests_per_s"]
        if name in floor:
            figures["engine"] = floor[f"{head}full"] / floor[name]
            figures["engine_requests_per_s"] = floor[name]
            figures["overhead"] = floor[name] / figures["requests_per_s"]
        for key in ("time", "tokens", "time_against_ours", "engine"):
            if key in figures:
                figures[f"{key}/limit"] = figures[key] / figures["limit"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--policy", default="configs/tiny", help="run, checkpoint or export, for the shapes task")
    parser.add_argument("--shape", default="tiny", help="tiny, or a shape of model_shape.py, for others")
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--pictures", default=f"{SHAPES},672", help="shapes, and pixels of a square picture's side")
    parser.add_argument("--max-tokens", type=int, default=16, help="generated per turn, with random weights")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    found = measure(arguments)
    print(f"{'':24}" + "".join(f"{name:>12}" for name in found))
    for column in next(iter(found.values())):
        print(f"{column:24}" + "".join(f"{figures.get(column, math.nan):>12.3g}" for figures in found.values()))
    if arguments.json:
        print(json.dumps(found))
    if any(figures["errors"] or figures["wrong_pairings"] for figures in found.values()):
        raise SystemExit("there were errors or wrong pairings")


if __name__ == "__main__":
    main()
