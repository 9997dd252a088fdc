"""M4: publishing a version of the weights, from the learner's call until every engine serves it, against its floor.

    uv run python -m tests.bench.weight_sync [--json] [--profile] [--shape mini|3b|7b] [--gpus 0|1|2] [--rounds 7]
        [KEY=VALUE ...]

The real learner and the real engine, with random weights of a model's shape. The floor, measured in the same command
with as many bytes: on CPU (`--gpus 0`) a copy in memory by one thread, on one GPU that both share a copy on the device,
on two GPUs one flat `torch.distributed.broadcast`. `pause_s` is the time for which the engine could generate nothing,
within `commit_s`; `send_s` the learner's time within `transfer_s`. `--profile` also measures the parts alone, tensor by
tensor as in the model, and prints when each call of the last publication began and ended in the worker.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from actors.engine.parameters import copy_all
from actors.fleet.pool import RolloutPool
from actors.fleet.worker import RolloutWorker
from actors.weights import digest
from cluster.runtime import workers as ray_workers
from cluster.runtime.connect import connect
from cluster.runtime.placement import place
from cluster.runtime.ranks import start_learner
from cluster.weights import WeightChannel
from configs.load import load_config
from configs.schema import Config
from learner.host import free_port
from tests.bench.model_shape import write_shape

SETTINGS = {
    0: ["model.dtype=float32"],
    1: ["model.dtype=bfloat16", "rollout.num_gpus=0.3", "learner.num_gpus=0.7", "rollout.gpu_memory_fraction=0.25"],
    2: ["model.dtype=bfloat16", "rollout.num_gpus=1", "learner.num_gpus=1", "rollout.gpu_memory_fraction=0.6"],
}
PHASES = ("transfer_s", "send_s", "commit_s", "pause_s")
FLOORS = {0: "copy in memory", 1: "copy on the device", 2: "flat torch.distributed.broadcast"}


def copy_seconds(num_bytes: int, device: str, rounds: int) -> float:
    torch.set_num_threads(1)
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return timed(lambda: target.copy_(source), rounds, device)


def timed(call: Callable[[], Any], rounds: int, device: str) -> float:
    """Median seconds after one round that is not counted."""
    seconds = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return median(seconds[1:])


def broadcast(rank: int, port: int, num_bytes: int, rounds: int, answers: Any) -> None:
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    content = torch.ones(num_bytes, dtype=torch.uint8, device="cuda")
    parts = torch.split(content, digest.PIECE_BYTES)
    seconds = timed(lambda: dist.broadcast(content, 0), rounds, "cuda")
    in_parts = timed(lambda: [dist.broadcast(part, 0) for part in parts], rounds, "cuda")
    if rank == 0:
        print(f"{len(parts)} broadcasts of its parts: {in_parts:.4f} s", flush=True)
        answers.put(seconds)
    dist.destroy_process_group()


def broadcast_seconds(num_bytes: int, rounds: int) -> float:
    context = multiprocessing.get_context("spawn")
    answers, port = context.Queue(), free_port()
    ranks = [context.Process(target=broadcast, args=(rank, port, num_bytes, rounds, answers)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    seconds: float = answers.get(timeout=120)
    for rank in ranks:
        rank.join(30)
    return seconds


class TimedWorker(RolloutWorker):
    """Notes when the calls of a publication begin and end."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        self._spans: list[tuple[float, float, str]] = []
        engine: Any = self._engine
        call, stand_still = engine._call, engine._stand_still
        engine._call = lambda method, *rest: self._timed(f"  engine: {method}", call(method, *rest))
        engine._stand_still = lambda **how: self._timed("  stand still", stand_still(**how))

    async def receive_weights(self, *positional: Any) -> None:
        await self._timed("receive", super().receive_weights(*positional))

    async def commit_weights(self, *positional: Any) -> float:
        return float(await self._timed("commit", super().commit_weights(*positional)))

    async def _timed(self, what: str, call: Coroutine[Any, Any, Any]) -> Any:
        started = time.monotonic()
        try:
            return await call
        finally:
            self._spans.append((started, time.monotonic(), what))

    async def take_spans(self) -> list[tuple[float, float, str]]:
        spans, self._spans = sorted(self._spans), []
        return spans


def row_sums(rows: torch.Tensor) -> list[torch.Tensor]:
    num_rows = digest.PIECE_BYTES // (8 * rows.shape[1])
    return [rows[start : start + num_rows].sum(1) for start in range(0, len(rows), num_rows)]


def part_seconds(model: Path, device: str, rounds: int) -> dict[str, float]:
    """Seconds of what a publication consists of, on a device that does nothing else."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    shapes = [parameter.shape for parameter in shaped(model).parameters()]
    source, target = ([torch.zeros(shape, dtype=dtype, device=device) for shape in shapes] for _ in range(2))
    flat = torch.zeros(sum(each.nbytes for each in source) // 1024 * 1024, dtype=torch.uint8, device=device)

    def one_by_one() -> None:
        for into, out_of in zip(target, source, strict=True):
            into.copy_(out_of, non_blocking=True)

    def exchange() -> None:
        for index, tensor in enumerate(target):
            tensor.data, source[index] = source[index], tensor.data

    calls: dict[str, Callable[[], Any]] = {
        "copy by copy_all": lambda: copy_all(target, source),
        "copy by one foreach": lambda: torch._foreach_copy_(target, source),
        "copy one by one": one_by_one,
        "exchange of addresses": exchange,
    }
    for words in (128, 512, 2048, 8192):
        rows = flat[: flat.nbytes // (8 * words) * 8 * words].view(torch.int64).view(-1, words)
        calls[f"sums of rows of {words} words"] = partial(row_sums, rows)
    calls["digest"] = lambda: digest.bucket_digest(flat)
    return {name: timed(call, rounds, device) for name, call in calls.items()}


async def print_spans(workers: list[Any], started: float) -> None:
    """In milliseconds since `started`: the clock is the host's, whatever the process."""
    for worker in workers:
        for began, ended, what in await worker._actor.take_spans.remote():
            print(f"{1e3 * (began - started):8.2f} to {1e3 * (ended - started):8.2f} ms  {what}", flush=True)


async def publications(config: Config, rounds: int, *, is_profiled: bool) -> dict[str, Any]:
    placement = place(config)
    if is_profiled:
        ray_workers.RolloutWorker = TimedWorker  # type: ignore[attr-defined]
    workers, learner = ray_workers.start_workers(config, placement), start_learner(config, placement)
    started = time.monotonic()
    await asyncio.gather(learner.start(), *(worker.ready() for worker in workers))
    print(f"up after {time.monotonic() - started:.1f} s", flush=True)
    pool = RolloutPool(workers, max_groups_in_flight=1, group_timeout_s=60)
    channel = WeightChannel(learner, pool, timeout_s=config.weights.timeout_s)
    first = await channel.publish()
    rest = [await channel.publish() for _ in range(rounds)]
    if is_profiled:
        await print_spans(workers, 0)
        began = time.monotonic()
        await channel.publish()
        await print_spans(workers, began)
    for each in rest:
        print(
            f"published in {each.seconds:.4f} s: transfer {each.transfer_s:.4f} s (learner {each.send_s:.4f} s), "
            f"commit {each.commit_s:.4f} s (pause {each.pause_s:.4f} s)",
            flush=True,
        )
    await asyncio.gather(learner.shutdown(), *(worker.shutdown() for worker in workers))
    return {
        "first_publish_s": round(first.seconds, 4),
        "publish_s": round(median(each.seconds for each in rest), 5),
        **{name: round(median(getattr(each, name) for each in rest), 5) for name in PHASES},
    }


def measure(shape: str, num_gpus: int, rounds: int, overrides: list[str], *, is_profiled: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        write_shape(shape, model)
        settings = [f"model.path={model}", "model.load=random", "weights.timeout_s=60", *SETTINGS[num_gpus]]
        config = load_config("tiny", [*settings, "learner.kl_coefficient=0", *overrides])
        num_bytes = sum(parameter.numel() for parameter in shaped(model).parameters()) * (2 if num_gpus else 4)
        if num_gpus == 2:
            floor_s = broadcast_seconds(num_bytes, rounds)
        else:
            floor_s = copy_seconds(num_bytes, "cuda" if num_gpus else "cpu", rounds)
        print(f"{FLOORS[num_gpus]} of {num_bytes / 1e9:.2f} GB: {floor_s:.4f} s", flush=True)
        if is_profiled:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:  # frees what it took
                parts = process.submit(part_seconds, model, "cuda" if num_gpus else "cpu", rounds).result()
            print("\n".join(f"{1e3 * seconds:8.2f} ms  {name}" for name, seconds in parts.items()), flush=True)
        connect()
        figures = asyncio.run(publications(config, rounds, is_profiled=is_profiled))
    return {
        "shape": shape,
        "gpus": num_gpus,
        "transport": config.transport,
        "bytes": num_bytes,
        **figures,
        "floor_s": round(floor_s, 5),
        "floor": FLOORS[num_gpus],
        "ratio": round(figures["publish_s"] / floor_s, 3),
        "pause_share": round(figures["pause_s"] / figures["publish_s"], 3),
    }


def shaped(model: Path) -> torch.nn.Module:
    """The model without memory."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        made: torch.nn.Module = AutoModelForImageTextToText.from_config(
            AutoConfig.from_pretrained(model, local_files_only=True)
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["mini", "3b", "7b"], default="mini", help="mini: 0.1 billion parameters")
    parser.add_argument("--gpus", type=int, choices=[0, 1, 2], default=0, help="0: CPU; 1: learner and engine share it")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, last")
    parser.add_argument("--profile", action="store_true", help="print where the time goes, too")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args()
    figures = measure(
        arguments.shape, arguments.gpus, arguments.rounds, arguments.overrides, is_profiled=arguments.profile
    )
    if arguments.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:16} {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
