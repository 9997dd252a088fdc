"""What a slow judge costs a real run: seconds of a step, by the judge's latency and by look-ahead depth.

    uv run python -m tests.bench.delayed_run [section.key=value ...] [--rounds 2] [--steps 6] [--latencies 0 0.3 1]
                                             [--depths 0 1 2]

Everything is real: engine, learner, pool, and an LLM judge behind a scripted endpoint that is right but takes its time.
One run is brought up for all; the learning rate is next to nothing, so that all steps play alike. Depths and latencies
take turns, and medians are over all rounds. The first latency is what the others are compared with, at the same depth.
Where engine and learner share their cores, overlap only shifts the work: give them GPUs of their own
(`rollout.num_gpus=1 learner.num_gpus=1`).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import tempfile
import time
from collections.abc import Sequence
from statistics import median

from cluster.collect import Collector
from cluster.display import Display
from cluster.launch import launch
from cluster.lookahead import Lookahead
from cluster.run import Run
from configs.load import load_config
from configs.schema import Config
from tests.judge.openai_server import OpenAIServer, delayed

NUM_WARMUP_STEPS = 8
SETTLE_S = 3.0
"""After a round: until the engine has finished what was begun for a batch that nobody takes."""


async def time_steps(run: Run, config: Config, *, depth: int, num_steps: int) -> list[tuple[float, float]]:
    """(seconds, of these verdicts alone) of each step, after those that fill the look-ahead."""
    steps, num_taken = [], num_steps + depth + 1
    async with (
        Collector(run, config) as collector,
        Lookahead(collector.collect, depth=depth, num_batches=num_taken + depth, allow=collector.allow) as ahead,
    ):
        for _ in range(num_taken):
            started = time.monotonic()
            batch = await ahead.take()
            waited_s = time.monotonic() - started
            await run.learner.update([group.training for group in batch.trained])
            await run.publish()
            steps.append((time.monotonic() - started, min(batch.judge_wait_s, waited_s)))
    await asyncio.sleep(SETTLE_S)
    return steps[depth + 1 :]


async def measure(arguments: argparse.Namespace, server: OpenAIServer, folder: str) -> list[dict[str, float]]:
    config = load_config(
        "tiny",
        [
            f"run.dir={folder}",
            "judge.chain=[openai]",
            "judge.llm.model=scripted",
            f"judge.llm.base_url={server.url}",
            "judge.cache=''",
            "learner.learning_rate=1e-9",
            *arguments.overrides,
        ],
    )
    kinds = list(itertools.product(arguments.depths, arguments.latencies))
    steps: dict[tuple[int, float], list[tuple[float, float]]] = {kind: [] for kind in kinds}
    async with launch(config, resume=False, display=Display(config), started_at=time.monotonic()) as run:
        await run.publish()
        await time_steps(run, config, depth=0, num_steps=NUM_WARMUP_STEPS)
        for depth, latency in kinds * arguments.rounds:
            server.plan = delayed(latency)
            steps[depth, latency] += await time_steps(run, config, depth=depth, num_steps=arguments.steps)
    return [
        {
            "depth": depth,
            "latency_s": latency,
            "step_s": median(seconds for seconds, _ in timed),
            "judge_wait_s": median(alone for _, alone in timed),
        }
        for (depth, latency), timed in steps.items()
    ]


def show(figures: Sequence[dict[str, float]]) -> None:
    print(f"{'depth':>6} {'judge':>8} {'step':>8} {'longer by':>10} {'verdicts alone':>15}")
    first: dict[float, float] = {}
    for row in figures:
        longer = row["step_s"] / first.setdefault(row["depth"], row["step_s"]) - 1
        print(
            f"{row['depth']:6} {row['latency_s']:6.2f} s {row['step_s']:6.2f} s {longer:10.1%}"
            f" {row['judge_wait_s']:13.2f} s"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--latencies", type=float, nargs="+", default=[0.0, 0.3, 1.0])
    parser.add_argument("--depths", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("overrides", nargs="*", help="as for `visionthink train`")
    arguments = parser.parse_intermixed_args()
    with OpenAIServer(delayed(0.0)) as server, tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(measure(arguments, server, folder))
    show(figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
