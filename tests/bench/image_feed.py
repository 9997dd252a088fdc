"""M13: what it costs to bring pictures to engine and learner, and whether memory stays where it is.

    uv run python -m tests.bench.image_feed [--json] [--steps 500] [--side 1008] [--groups 2]

A real rollout worker (a Ray actor) plays groups of G=8 on a made-up engine that runs the library's image processor once
per view, as vLLM does; a second process stands in for the learner and reads every full view from the object store.
Half of the episodes ask. The peer, in the same command: Pillow and the library's processor for every episode.

    images_per_s_per_core        full views that reached engine and learner, per CPU second of the worker
    against_peer                 that, over the peer's
    *_mib_per_step               slope of private memory, least squares over the last four fifths of the steps
    driver_pixel_bytes           bytes in arrays, pictures and byte strings of what the driver got
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from PIL import Image

from actors.episode import PlayedGroup, SampleRef
from actors.play import PlayRequest
from cluster.runtime import starting
from cluster.runtime.connect import connect
from cluster.runtime.placement import place
from configs.schema import Config
from tests.bench.feed_worker import FeedWorker, image_processor, own_mib, patches
from tests.bench.playing import QUESTION, bench_config

NUM_ROWS = 32


class Consumer:
    """The learner's part: it maps a full view and reads it."""

    def read(self, view: np.ndarray) -> int:
        return int(view.sum(dtype=np.int64)) and view.nbytes

    def mib(self) -> float:
        return own_mib()


def write_pictures(path: Path, side: int) -> list[bytes]:
    """A Parquet file of JPEG photographs' size: smooth noise, as a plain one would not compress."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(NUM_ROWS):
        coarse = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        pictures.append(file.getvalue())
    columns = {
        "problem": [QUESTION] * NUM_ROWS,
        "images": [[{"bytes": encoded, "path": None}] for encoded in pictures],
        "original_answer": ["red"] * NUM_ROWS,
    }
    pq.write_table(pa.table(columns), path)
    return pictures


def held_pixels(found: Any) -> Iterator[int]:
    """Bytes of everything in it that could hold pixels."""
    if isinstance(found, np.ndarray):
        yield found.nbytes
    elif isinstance(found, (bytes, bytearray, memoryview)):
        yield len(found)
    elif isinstance(found, Image.Image):
        yield 3 * found.width * found.height
    elif is_dataclass(found):
        for field in fields(found):
            yield from held_pixels(getattr(found, field.name))
    elif isinstance(found, (tuple, list)) and not (found and isinstance(found[0], (int, float))):
        for each in found:
            yield from held_pixels(each)


def slope(values: list[float]) -> float:
    kept = values[len(values) // 5 :]
    return float(np.polyfit(np.arange(len(kept)), kept, 1)[0])


def peer_seconds_per_group(config: Config, pictures: list[bytes], group_size: int) -> float:
    """CPU seconds of a decode and the library's processor for every episode's full view, and no quarter view."""
    processor = image_processor(config.model.path)
    patches(processor, Image.open(io.BytesIO(pictures[0])).convert("RGB"))
    started = time.process_time()
    for encoded in pictures[:8]:
        for _ in range(group_size):
            patches(processor, Image.open(io.BytesIO(encoded)).convert("RGB"))
    return (time.process_time() - started) / 8


async def feed(config: Config, path: Path, *, steps: int, groups: int) -> dict[str, float]:
    with patch.object(starting, "RolloutWorker", FeedWorker):
        (worker,) = starting.start_workers(config, place(config))
    consumer = ray.remote(Consumer).options(num_cpus=0).remote()
    await worker.ready()
    await worker.serve_loaded_weights()
    pixel_bytes, read_bytes, used = 0, 0, []
    memory: dict[str, list[float]] = {"driver": [], "worker": [], "learner": []}

    async def one(number: int) -> None:
        nonlocal pixel_bytes, read_bytes
        ref = SampleRef(dataset=str(path), row=number % NUM_ROWS, uid=f"{number // NUM_ROWS}-{number % NUM_ROWS}")
        size = config.rollout.group_size
        request = PlayRequest(ref=ref, kind="policy", greedy=False, num_episodes=size, run="b", step=0, attempt=0)
        played, view = await worker.play(request)
        assert isinstance(played, PlayedGroup), played
        pixel_bytes += sum(held_pixels(played))
        read_bytes += await consumer.read.remote(view)

    for step in range(steps):
        used.append(await worker._actor.spent.remote())
        memory["driver"].append(own_mib())
        memory["worker"].append(used[-1]["mib"])
        memory["learner"].append(await consumer.mib.remote())
        await asyncio.gather(*(one(step * groups + index) for index in range(groups)))
    used.append(await worker._actor.spent.remote())
    num_groups = (steps - 1) * groups  # the first step opens the data set
    return {
        "worker_cpu_ms_per_group": 1000 * (used[-1]["cpu_s"] - used[1]["cpu_s"]) / num_groups,
        "processed_per_group": (used[-1]["processed"] - used[1]["processed"]) / num_groups,
        "driver_pixel_bytes": pixel_bytes,
        "learner_mib_per_group": read_bytes / steps / groups / 2**20,
        **{f"{name}_mib": values[-1] for name, values in memory.items()},
        **{f"{name}_mib_per_step": slope(values) for name, values in memory.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--groups", type=int, default=2, help="groups, so pictures, of a step")
    parser.add_argument("--side", type=int, default=1008, help="pixels of the pictures' sides, a multiple of 56")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    config = bench_config("tiny", side=arguments.side, on_gpu=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pictures.parquet"
        pictures = write_pictures(path, arguments.side)
        peer_s = peer_seconds_per_group(config, pictures, config.rollout.group_size)
        connect()
        try:
            figures = asyncio.run(feed(config, path, steps=arguments.steps, groups=arguments.groups))
        finally:
            ray.shutdown()
    ours_s = figures["worker_cpu_ms_per_group"] / 1000
    figures |= {
        "jpeg_kb": sum(map(len, pictures)) / len(pictures) / 1000,
        "images_per_s_per_core": 1 / ours_s,
        "peer_cpu_ms_per_group": 1000 * peer_s,
        "peer_images_per_s_per_core": 1 / peer_s,
        "against_peer": peer_s / ours_s,
        "goal_against_peer": config.rollout.group_size / 1.2,
    }
    for name, figure in figures.items():
        print(f"{name:30} {figure:12.3f}")
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
