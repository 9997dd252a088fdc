"""M4: publishing a version of the weights, from the learner's call until every engine serves it, against its floor.

    uv run python -m tests.bench.weight_sync [--json] [--shape mini|3b|7b] [--gpus 0|1|2] [--rounds 7] [KEY=VALUE ...]

The real learner and the real engine, with random weights of a model's shape. The floor, measured in the same command
with as many bytes: on CPU (`--gpus 0`) a copy in memory by one thread, on one GPU that both share a copy on the device,
on two GPUs one flat `torch.distributed.broadcast`. `pause_s` is the time for which the engine could generate nothing,
within `commit_s`; `send_s` the learner's time within `transfer_s`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from actors.fleet.pool import RolloutPool
from cluster.runtime.connect import connect
from cluster.runtime.placement import place
from cluster.runtime.ranks import start_learner
from cluster.runtime.starting import start_workers
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
    seconds = timed(lambda: dist.broadcast(content, 0), rounds, "cuda")
    if rank == 0:
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


async def publications(config: Config, rounds: int) -> dict[str, Any]:
    placement = place(config)
    workers, learner = start_workers(config, placement), start_learner(config, placement)
    started = time.monotonic()
    await asyncio.gather(learner.start(), *(worker.ready() for worker in workers))
    print(f"up after {time.monotonic() - started:.1f} s", flush=True)
    pool = RolloutPool(workers, max_groups_in_flight=1, group_timeout_s=60)
    channel = WeightChannel(learner, pool, timeout_s=config.weights.timeout_s)
    first = await channel.publish()
    rest = [await channel.publish() for _ in range(rounds)]
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


def measure(shape: str, num_gpus: int, rounds: int, overrides: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        write_shape(shape, model)
        settings = [f"model.path={model}", "model.load=random", "weights.timeout_s=60", *SETTINGS[num_gpus]]
        config = load_config("tiny", [*settings, "learner.kl_coefficient=0", *overrides])
        num_bytes = shape_bytes(model, 2 if num_gpus else 4)
        if num_gpus == 2:
            floor_s = broadcast_seconds(num_bytes, rounds)
        else:
            floor_s = copy_seconds(num_bytes, "cuda" if num_gpus else "cpu", rounds)
        print(f"{FLOORS[num_gpus]} of {num_bytes / 1e9:.2f} GB: {floor_s:.4f} s", flush=True)
        connect()
        figures = asyncio.run(publications(config, rounds))
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


def shape_bytes(model: Path, bytes_per_value: int) -> int:
    """Bytes of the model's parameters, without making them."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        made = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(model, local_files_only=True))
    return sum(parameter.numel() for parameter in made.parameters()) * bytes_per_value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["mini", "3b", "7b"], default="mini", help="mini: 0.1 billion parameters")
    parser.add_argument("--gpus", type=int, choices=[0, 1, 2], default=0, help="0: CPU; 1: learner and engine share it")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, last")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args()
    figures = measure(arguments.shape, arguments.gpus, arguments.rounds, arguments.overrides)
    if arguments.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:16} {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
