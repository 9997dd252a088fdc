"""What a slow judge costs a run: seconds of a step, by the judge's latency and the depth of look-ahead.

    uv run python -m tests.bench.judge_wait [section.key=value ...] [--steps 8] [--latencies 0 0.3 1] [--depths 0 1 2]

Each pair is a `visionthink train` of its own whose LLM judge is a scripted endpoint that is right and takes its time.
The learning rate is next to nothing, so all steps play alike; medians, without the first steps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from cluster.records.reading import read_metrics
from tests.judge.openai_server import OpenAIServer, delayed

NUM_FIRST_STEPS = 3  # left out: kernels are compiled


def run_steps(depth: int, latency_s: float, num_steps: int, overrides: list[str]) -> dict[str, float]:
    with OpenAIServer(delayed(latency_s)) as server, tempfile.TemporaryDirectory() as folder:
        endpoint = [f"judge.llm.base_url={server.url}", "judge.llm.model=scripted", "judge.chain=[openai]"]
        steps = [f"train.num_steps={num_steps + NUM_FIRST_STEPS + depth}", f"train.max_staleness={depth}"]
        run = [f"run.dir={folder}", "run.name=wait", "judge.cache=''", "learner.learning_rate=1e-9"]
        command = [sys.executable, "-m", "cluster.cli", "train", *endpoint, *steps, *run, *overrides]
        subprocess.run(command, check=True, timeout=3600, stdout=sys.stderr)
        timed = [row for row in read_metrics(Path(folder) / "wait") if "time/step_s" in row][NUM_FIRST_STEPS + depth :]
    medians = {name: median(row[f"time/{name}"] for row in timed) for name in ("step_s", "judge_wait_s")}
    return {"depth": depth, "latency_s": latency_s, **medians}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--latencies", type=float, nargs="+", default=[0.0, 0.3, 1.0])
    parser.add_argument("--depths", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("overrides", nargs="*", help="as for `visionthink train`")
    arguments = parser.parse_intermixed_args()
    figures = []
    print(f"{'depth':>6} {'judge':>8} {'step':>8} {'of it, verdicts alone':>22}")
    for depth, latency_s in itertools.product(arguments.depths, arguments.latencies):
        figures.append(row := run_steps(depth, latency_s, arguments.steps, arguments.overrides))
        print(f"{depth:6} {latency_s:6.2f} s {row['step_s']:6.2f} s {row['judge_wait_s']:20.2f} s", flush=True)
    if arguments.json:
        print(json.dumps({"steps": figures}))


if __name__ == "__main__":
    main()
