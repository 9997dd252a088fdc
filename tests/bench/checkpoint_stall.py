"""M14: what a checkpoint costs the loop, against copying the learner's state to host memory alone.

    uv run python -m tests.bench.checkpoint_stall --json [--repeats 5] [--zero-stage 2] [--model DIR --num-gpus 1]

A learner of one rank in its Ray actor, with a model of some 100s of MB and random weights, and a run's `Checkpoints`
over a local folder. After every update the loop calls `reached`: every second time a checkpoint is due, which is
written while the next update runs; the other times only the copy is made, while nothing is written. Medians over the
repeats, after warm-up. Also printed: an update beside a save and alone, and what the whole save took.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import ray

from actors.data.dataset import PromptCursor
from cluster.checkpoints import Checkpoints, DriverParts
from cluster.identity import Identity
from cluster.runtime.placement import place
from cluster.runtime.ranks import start_learner
from configs.learner import LearnerConfig
from configs.schema import Config, ModelConfig, RolloutConfig, RunConfig, TrainConfig
from tests.learner.builders import make_group, save_model, small_model
from tests.local_ray import ray_on_this_machine

WARM_UP = 4
"""Steps in which buffers are made: two that are kept, and one that is written."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--zero-stage", type=int, default=2, choices=(0, 1, 2, 3))
    parser.add_argument("--model", type=Path, help="folder of a shape, for random weights; default: 70 M parameters")
    parser.add_argument("--num-gpus", type=int, default=0, choices=(0, 1))
    parser.add_argument("--json", action="store_true", help="print all figures as JSON, last")
    return parser.parse_args()


async def seconds(work: Awaitable[Any]) -> float:
    started = time.monotonic()
    await work
    return time.monotonic() - started


async def measure(config: Config, repeats: int) -> dict[str, float]:
    learner = start_learner(config, place(config))
    await learner.start()
    events = []
    prompts = PromptCursor(dataset="none", num_rows=100, seed=0)
    driver = DriverParts(
        identity=Identity(
            dataset="none", chat_template="", model="", prompt="", judge="", packages={}, settings={}, revisions={}
        ),
        prompts=prompts,
        judge_watch=SimpleNamespace(totals=dict),
    )
    checkpoints = Checkpoints(config, learner, driver, on_event=events.append, say=print, warn=print)
    found: dict[str, list[float]] = {"copy_s": [], "stall_s": [], "update_s": [], "update_beside_save_s": []}
    groups = [make_group(seed) for seed in range(2)]
    groups = [replace(group, image=ray.put(group.image)) for group in groups]
    for step in range(1, WARM_UP + 2 * repeats + 1):
        is_due = step % config.train.checkpoint_every == 0
        update_s = await seconds(learner.update(groups))
        if not is_due:
            await checkpoints.save_last()  # nothing is written any more
        reached_s = await seconds(checkpoints.reached(step, prompts.state()))
        if step > WARM_UP:
            found["stall_s" if is_due else "copy_s"].append(reached_s)
            found["update_s" if is_due else "update_beside_save_s"].append(update_s)
        print(f"step {step}: update {update_s:.2f} s, reached {reached_s:.3f} s", flush=True)
    await checkpoints.save_last()
    await learner.shutdown()
    assert {event.kind for event in events} == {"save"}, events
    print(events[-1].detail)
    figures = {name: median(values) for name, values in found.items()}
    return {**figures, "stall_over_copy": figures["stall_s"] / figures["copy_s"]}


def main() -> None:
    chosen = parse()
    with tempfile.TemporaryDirectory() as folder:
        model = chosen.model or Path(folder) / "model"
        if chosen.model is None:
            save_model(model, small_model(width=1024, vision_width=256, layers=4, vocab_size=32000))
        config = Config(
            run=RunConfig(name="bench", dir=folder),
            model=ModelConfig(
                path=str(model), load="random", dtype="bfloat16" if chosen.num_gpus else "float32", min_pixels=3136
            ),
            learner=LearnerConfig(
                num_gpus=chosen.num_gpus,
                zero_stage=chosen.zero_stage,
                prompts_per_mini_batch=2,
                kl_coefficient=0.0,
                num_threads=1,
            ),
            rollout=RolloutConfig(num_gpus=chosen.num_gpus and 0.1),
            train=TrainConfig(checkpoint_every=2, keep_checkpoints=1, num_steps=10**6),
        )
        with ray_on_this_machine():
            figures = asyncio.run(measure(config, chosen.repeats))
    for name, figure in figures.items():
        print(f"{name:24} {figure:.3f}")
    if chosen.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
