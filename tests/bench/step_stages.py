"""What one step costs by stage on whatever the config asks for: a few RL steps through the real actors.

    uv run python -m tests.bench.step_stages [--steps 3] [--kind policy] [--config NAME] [section.key=value ...]

For shapes with random weights (`model.load=random`), whose episodes earn nothing: each group's episodes get advantages
of +1 and -1 in turn, so that the learner has its full work whatever was said. Everything else is the main job's own
code: engines, two views, micro-batches, DeepSpeed, checksummed publishing. Prints a line per step, and JSON last.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import subprocess
import time
from statistics import median
from typing import Any

from actors.data.dataset import Dataset, PromptCursor
from actors.episode import PlayedGroup
from actors.play import Kind, PlayRequest
from cluster.datasets.shipped import make_missing_data
from cluster.display import Display
from cluster.folders import resolve_run
from cluster.launch import Parts, launch
from configs.schema import Config
from learner.batches.batch import TrainingGroup


async def play(run: Parts, cursor: PromptCursor, config: Config, kind: Kind, step: int) -> list[TrainingGroup]:
    async def one(ref: Any) -> TrainingGroup:
        request = PlayRequest(
            ref=ref,
            kind=kind,
            greedy=False,
            num_episodes=config.rollout.group_size,
            run=config.run.name,
            step=step,
            attempt=0,
        )
        played, image = await run.fleet.rollouts.play(request)
        assert isinstance(played, PlayedGroup), played
        signs = tuple(1.0 if index % 2 else -1.0 for index in range(len(played.episodes)))
        return TrainingGroup(played=played, rewards=signs, advantages=signs, image=image)

    return list(await asyncio.gather(*(one(ref) for ref in cursor.take(config.train.prompts_per_step))))


def gpu_memory_gib() -> list[float]:
    """Memory in use on each GPU of this machine; none where there is no GPU."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    return [round(float(line) / 1024, 1) for line in found.stdout.splitlines()]


async def measure(config: Config, kind: Kind, num_steps: int) -> dict[str, Any]:
    started = time.monotonic()
    rows: list[dict[str, float]] = []
    num_rows = len(Dataset.open(config.data.train))
    cursor = PromptCursor(dataset=config.data.train, num_rows=num_rows, seed=config.run.seed)
    async with launch(config, resume=False, display=Display(config), started_at=started) as run:
        up = time.monotonic()
        await run.weights.publish()
        published = time.monotonic()
        print(f"up after {up - started:.1f} s, first publish {published - up:.2f} s", flush=True)
        for step in range(1, num_steps + 1):
            times = [time.monotonic()]
            groups = await play(run, cursor, config, kind, step)
            times.append(time.monotonic())
            update = await run.learner.update(groups)
            times.append(time.monotonic())
            await run.weights.publish()
            times.append(time.monotonic())
            episodes = [episode for group in groups for episode in group.played.episodes]
            generated = sum(episode.num_generated_tokens for episode in episodes)
            total = sum(len(episode.token_ids) for episode in episodes)
            play_s, update_s, publish_s = (after - before for before, after in itertools.pairwise(times))
            row = {
                "play_s": play_s,
                "update_s": update_s,
                "publish_s": publish_s,
                "episodes": len(episodes),
                "asked": sum(episode.asked for episode in episodes),
                "visual_tokens": sum(episode.num_visual_tokens for episode in episodes),
                "generated_tokens_per_s": generated / play_s,
                "learned_tokens_per_s": total / update_s,
                **{name: value for name, value in update.metrics.items() if "/" in name},
            }
            rows.append(row)
            shown = ("play_s", "update_s", "publish_s", "generated_tokens_per_s", "learned_tokens_per_s")
            print(f"step {step}: " + ", ".join(f"{name} {row[name]:.2f}" for name in shown), flush=True)
        memory = gpu_memory_gib()
    steady = rows[1:] or rows
    figures: dict[str, Any] = {name: median(row.get(name, 0.0) for row in steady) for name in steady[0]}
    return {
        "start_s": round(up - started, 1),
        "first_publish_s": round(published - up, 2),
        "gpu_memory_gib": memory,
        **{name: round(value, 5) for name, value in figures.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--kind", choices=["policy", "always_full", "always_quarter"], default="policy")
    parser.add_argument("--config", default="tiny")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    config = resolve_run(arguments.config, ["run.name=bench-stages", *arguments.overrides], resume=False).config
    make_missing_data(config)
    print(json.dumps(asyncio.run(measure(config, arguments.kind, arguments.steps))))


if __name__ == "__main__":
    main()
