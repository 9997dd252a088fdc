"""A run whose members come and go, against the same run left alone and against starting the whole job again (M15).

    uv run python -m tests.bench.elastic --json [--parts calm elastic ...] [--folder DIR] [--picture PNG]

Real runs of the tiny model on a Ray of three nodes. `calm` is left alone. In `elastic` the rollouts go from 1 to 3 to 1
by `visionthink scale`, a rank of two is killed and comes back, and all judge replicas are killed; in `losses` the only
rank, a worker and a node are lost. An LLM judges in these, a scripted one behind an endpoint of its own. In `faults` a
worker, a rank and the whole job are killed in turn, once in ten steps; the job is started again by the same command.
Parts that DIR has the result of are not run again.

`ledger_equal`: whether each step of `elastic` and `losses` consumed the same samples as in `calm`. `loss_difference`
and its like: of each step, against one undisturbed rank that learns from the same groups. Two runs do not play the same
episodes, as every engine draws from a random stream of its own, so learners are compared on what was played.
`useful_time`: the share that the steps from a fault to the next would have taken of their time without it, for members
that are replaced; `restart_useful_time` the same for the job. `useful_time_metric` is the run's own `run/useful_time`,
its start included.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import harmonic_mean, median
from typing import Any

import psutil

from actors.data.shapes import make_shapes
from cluster.records.events import LoggedEvent
from tests.bench.elastic_driver import COMPARED
from tests.bench.live_run import LiveRun
from tests.bench.member_lines import draw_members
from tests.bench.three_nodes import JUDGE, RANK, WORKER, ThreeNodes, is_in, three_nodes
from tests.judge.openai_server import OpenAIServer, honest

FAULT_EVERY, FIRST_FAULT = 10, 4
JOB_KILLED = "kill -9 of the driver; the same command is given again"
SETTINGS = [
    "train.max_draws=1.0",  # each step then consumes the same samples, whatever was played
    "eval.num_samples=50",
    "learner.num_threads=1",
    "learner.stall_timeout_s=20",
    "rollout.max_restarts=10",
]
SHORT = ["train.num_steps=24", "learner.learning_rate=1e-4", "judge.chain=[openai]", "judge.llm.model=scripted"]
SHORT += ["judge.cache="]  # each answer is a call
"""Something to learn from up to the last steps."""
LONG = [f"train.num_steps={FIRST_FAULT + 3 * FAULT_EVERY}", "train.prompts_per_step=64", "learner.learning_rate=1e-6"]
LONG += ["rollout.num_spares=1", "learner.num_spares=1"]
"""All steps alike, and as long as two cores allow, since a process takes as long to start as in a large run."""


def reformed(logged: LoggedEvent) -> bool:
    return logged.event.kind == "reform"


def joined(logged: LoggedEvent) -> bool:
    return logged.event.kind == "join" and "serves" in logged.event.detail


class Drill:
    """What is done to a run in the midst of its steps."""

    def __init__(self, run: LiveRun, nodes: ThreeNodes) -> None:
        self.run, self.nodes = run, nodes

    def has(self, rollouts: int, learner: int) -> Callable[[], bool]:
        return lambda: (self.run.num_working("rollouts"), self.run.num_working("learner")) == (rollouts, learner)

    def scale(self, sizes: str, is_whole: Callable[[], bool]) -> Callable[[], None]:
        command = [sys.executable, "-m", "cluster.cli", "scale", str(self.run.folder), *sizes.split()]

        def act() -> None:
            subprocess.run(command, check=True, stdout=sys.stderr)

        return self.run.begin_strike(f"scale {sizes}", act, is_whole)

    def kill_rank(self, is_whole: Callable[[], bool]) -> None:
        """In mid-update."""
        ranks, num = self.nodes.processes(RANK), self.run.num_working("learner")
        learning: list[psutil.Process] = []

        def learns() -> bool:
            learning.extend(rank for rank in ranks if is_in(rank, "learn"))
            return bool(learning)

        self.run.wait(learns, "a rank learns")
        self.run.strike(f"kill -9 of one of {num} ranks in an update", learning[-1].kill, is_whole, reformed)

    def kill_worker(self, is_whole: Callable[[], bool]) -> None:
        """While it plays."""
        self.run.wait(lambda: any(each.in_flight for each in self.run.members), "groups are played")
        victim, num = self.nodes.processes(WORKER)[-1], self.run.num_working("rollouts")
        self.run.strike(f"kill -9 of one of {num} rollout workers in play", victim.kill, is_whole, joined)

    def kill_judges(self) -> None:
        """All replicas, while groups are judged or played."""
        victims = self.nodes.processes(JUDGE)

        def act() -> None:
            for victim in victims:
                victim.kill()

        def are_back() -> bool:
            return len([each for each in self.nodes.processes(JUDGE) if each not in victims]) >= len(victims)

        self.run.strike(f"kill -9 of all judge replicas ({len(victims)})", act, are_back)

    def lose_node(self, is_whole: Callable[[], bool]) -> None:
        """One with a rank, which is replaced by an empty one."""
        node = self.nodes.node_of(RANK)

        def replace_node() -> None:
            self.nodes.remove_node(node)
            self.nodes.add_node()

        self.run.strike("a node with a rank is lost, another one comes", replace_node, is_whole, reformed)


def calm(run: LiveRun, nodes: ThreeNodes) -> None:
    """Nothing is done."""


def elastic(run: LiveRun, nodes: ThreeNodes) -> None:
    """Rollouts 1 -> 3 -> 1, ranks 2 -> 1 -> 2."""
    drill = Drill(run, nodes)
    run.wait(lambda: run.step >= 2 and drill.has(1, 2)(), "all members are there")
    grown = drill.scale("rollouts=1..3", lambda: run.num_working("rollouts") == 3)
    run.wait_steps(1)
    drill.kill_rank(lambda: run.num_working("learner") == 2)
    grown()
    drill.kill_judges()
    run.wait_steps(2)
    drill.scale("rollouts=1", drill.has(1, 2))()


def losses(run: LiveRun, nodes: ThreeNodes) -> None:
    """The only rank, a rollout worker and a node are lost."""
    drill = Drill(run, nodes)
    run.wait(lambda: run.step >= 2 and drill.has(1, 1)(), "all members are there")
    drill.kill_rank(drill.has(1, 1))
    run.wait_steps(1)
    drill.kill_worker(drill.has(1, 1))
    drill.scale("learner=1..2", drill.has(1, 2))()
    run.wait_steps(1)
    drill.lose_node(drill.has(1, 2))


def faults(run: LiveRun, nodes: ThreeNodes) -> None:
    """A worker and a rank are killed in turn and replaced; then the job, and the same command is given again."""
    drill = Drill(run, nodes)

    def start_again() -> None:
        run.kill()
        run.start()

    strikes: list[Callable[[], None]] = [
        lambda: drill.kill_worker(drill.has(2, 2)),
        lambda: drill.kill_rank(drill.has(2, 2)),
        lambda: run.strike(JOB_KILLED, start_again, lambda: run.is_live and drill.has(2, 2)()),
    ]
    for number, strike in enumerate(strikes):
        run.wait_for(FIRST_FAULT + number * FAULT_EVERY)
        strike()


TWO = ["rollout.num_workers=2", "learner.num_ranks=1..2"]
PARTS: dict[str, tuple[Callable[[LiveRun, ThreeNodes], None], list[str]]] = {
    "calm": (calm, [*SHORT, *TWO]),
    "elastic": (elastic, [*SHORT, "rollout.num_workers=1", "learner.num_ranks=1..2"]),
    "losses": (losses, [*SHORT, "rollout.num_workers=1", "learner.num_ranks=1"]),
    "faults": (faults, [*LONG, *TWO]),
}
"""What is done to a run, and its settings."""
REPLAYED = (elastic, losses)
"""At their ends, the updates are done once more by one rank."""


def play_part(name: str, folder: Path, overrides: list[str]) -> None:
    act, settings = PARTS[name]
    shapes = make_shapes(folder / "shapes", train_rows=2000, heldout_rows=200, seed=0)
    data = [*SETTINGS, *settings, f"data.train={shapes['train']}", f"data.heldout={shapes['heldout']}"]
    with (
        OpenAIServer(honest) as server,
        three_nodes() as nodes,
        LiveRun(
            name, folder, nodes, [*data, f"judge.llm.base_url={server.url}", *overrides], replays=act in REPLAYED
        ) as run,
    ):
        act(run, nodes)
        run.finish(600)
        (folder / f"{name}.json").write_text(json.dumps(run.result()))


def differences(part: dict[str, Any]) -> dict[str, Any]:
    """From an undisturbed rank with the same groups: losses, gradient norms (as a share of them), the last weights."""
    both = [(ours, theirs) for ours, theirs in zip(part["learned"], part["replayed"]["steps"], strict=True) if theirs]
    loss, norm = COMPARED
    return {
        "steps_compared": len(both),
        "loss_difference": max(abs(ours[loss] - theirs[loss]) for ours, theirs in both),
        "grad_norm_difference": max(abs(ours[norm] / theirs[norm] - 1) for ours, theirs in both),
        "weight_difference": part["replayed"]["weight_difference"],
    }


def useful_times(part: dict[str, Any]) -> list[tuple[str, float]]:
    """What was done, and the share that the steps until the next fault would have taken of their time without it.

    Without it, each would have taken the median of the steps after the first in which nobody was missing.
    """
    ends, strikes = part["step_ends"], part["recovery_s"]
    steps = list(itertools.pairwise(ends))
    whole = [
        end - begin
        for begin, end in steps
        if all(end <= strike["at"] or begin >= strike["at"] + strike["recovery_s"] for strike in strikes)
    ]
    struck = [next(i for i, end in enumerate(ends) if end > strike["at"]) - 1 for strike in strikes]
    return [
        (strike["what"], (last - first) * median(whole) / (ends[last] - ends[first]))
        for strike, (first, last) in zip(strikes, itertools.pairwise([*struck, len(ends) - 1]), strict=True)
    ]


def report(parts: dict[str, dict[str, Any]], picture: Path | None) -> dict[str, Any]:
    found: dict[str, Any] = {"heldout": {name: part["heldout"] for name, part in parts.items()}}
    for name, part in parts.items():
        consumed = [sample for samples in part["ledger"] for sample in samples]
        assert len(set(consumed)) == len(consumed), f"{name}: a sample was consumed twice"
        found.setdefault("useful_time_metric", {})[name] = part["useful_time_metric"]
        found.setdefault("recovery_s", {})[name] = part["recovery_s"]
        if part["replayed"]:
            for key, figure in differences(part).items():
                found.setdefault(key, {})[name] = figure
    if "elastic" in parts and picture is not None:
        draw_members(parts["elastic"], picture)
    alike = [parts[name]["ledger"] for name in ("calm", "elastic", "losses") if name in parts]
    if len(alike) > 1:
        found["ledger_equal"] = all(ledger == alike[0] for ledger in alike)
    if "faults" in parts:
        times = useful_times(parts["faults"])
        found["useful_time_by_fault"] = dict(times)
        found["useful_time"] = harmonic_mean(share for what, share in times if what != JOB_KILLED)
        found["restart_useful_time"] = dict(times)[JOB_KILLED]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=[*PARTS], default=[*PARTS])
    parser.add_argument("--folder", type=Path, help="keeps the runs and the results of their parts")
    parser.add_argument("--picture", type=Path, help="PNG of the members over time")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("overrides", nargs="*", help="as for `visionthink train`")
    arguments = parser.parse_intermixed_args()
    folder = (arguments.folder or Path(tempfile.mkdtemp(prefix="elastic-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["RAY_DEDUP_LOGS"] = "0"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for name in arguments.parts:
        if not (folder / f"{name}.json").exists():
            play_part(name, folder, arguments.overrides)
    parts = {name: json.loads((folder / f"{name}.json").read_text()) for name in arguments.parts}
    found = report(parts, arguments.picture)
    if arguments.json:
        print(json.dumps(found))
    else:
        for key, value in found.items():
            print(f"{key:24} {value}")


if __name__ == "__main__":
    main()
