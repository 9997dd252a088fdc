"""Hundreds of steps of the real loop under random faults, and what is left of them in memory, store, files, processes.

    uv run python -m tests.faults.soak [--steps 500] [--seed 0] [--json]

Loop, collection, pool, fleet, weight channel, records and Ray are real; engines, judge and learner are scripted, so
that a step takes a tenth of a second. Faults are drawn from the seed: a worker is killed, stopped, asked to end or
wedged, is slow to take a version or fails a sample; the fleet shrinks and grows.
"""

import argparse
import asyncio
import io
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import ray
from rich.console import Console

from actors.data.dataset import PromptCursor, SkipLedger
from actors.fleet.pool import RolloutPool
from cluster.collect import Collector
from cluster.display import Display
from cluster.fleet import Fleet
from cluster.judging.watch import JudgeWatch
from cluster.launch import Parts
from cluster.records.journal import Journal
from cluster.runtime import starting
from cluster.runtime.members import Members
from cluster.runtime.placement import Placement, Resources
from cluster.runtime.ranks import FetchedViews
from cluster.runtime.seats import policy_of
from cluster.runtime.starting import WorkerStarter
from cluster.status.observer import Observer
from cluster.status.scaling import SizeDesk
from cluster.timekeeping import RunClock
from cluster.train import train
from cluster.update_stream import UpdateStream
from cluster.weights import WeightChannel
from configs.load import load_config, to_yaml
from configs.ranges import Range
from judge.pool import JudgePool
from judge.verdict import Verdict
from learner.batches.pictures import Picture
from learner.update import UpdateReport
from tests.fakes import ExactJudges, FakeWeightSource
from tests.faults.scripted import SIDE, QuickWorker, RowReader, picture_of
from tests.local_ray import ray_on_this_machine

STORE_BYTES = 80_000_000
"""A run of 500 steps puts 2 GB of pictures into it."""
PROMPTS_PER_STEP = 4
FAULT_SHARE = 0.15
"""Of the steps."""
KINDS = ("kill", "stop", "terminate", "wedge", "slow sync", "failed sample", "scale")
SIZES = (Range(minimum=1, maximum=2), Range(minimum=1, maximum=3))
NUM_LOOKS = 10


class Rank:
    """Takes the pictures of an update as a learner's rank does."""

    def __init__(self):
        self._reader = RowReader()

    def learn(self, pictures):
        views = FetchedViews(pictures, self._reader, patience_s=10.0)
        for number, picture in enumerate(pictures):
            assert (views[number] == picture_of(picture.ref.row)).all()


class ScriptedLearner(FakeWeightSource):
    """Fetches the pictures, checks the versions of what it is given, and makes a step."""

    def __init__(self):
        super().__init__(keeps_last=True)
        self.num_ranks = 1
        self._rank = ray.remote(Rank).options(num_cpus=0).remote()

    def begin(self): ...

    async def learn(self, groups):
        pictures = []
        for group in groups:
            played = group.played
            versions = {span.version for e in played.episodes for turn in e.turns for span in turn.version_spans}
            assert len(versions) == 1, f"a group of versions {versions}"
            assert self.version - 1 <= versions.pop() <= self.version
            pictures.append(Picture(handle=group.image, ref=played.ref, full_size=(SIDE, SIDE), image_sha256=""))
        await self._rank.learn.remote(pictures)

    async def finish(self):
        start, self.version = self.version, self.version + 1
        return UpdateReport(start_version=start, optimizer_step=self.version, num_tokens=0, seconds=0.0, metrics={})

    async def export_hf(self, folder): ...

    def close(self):
        ray.kill(self._rank)


class ExactBackend:
    async def grade(self, request) -> list[Verdict]:
        return list(await ExactJudges().grade(request))


class NoCheckpoints:
    """Calls back after each step."""

    def __init__(self, on_step):
        self._on_step = on_step

    async def reached(self, step, cursor):
        await self._on_step(step)

    async def save_last(self): ...


class Soak:
    """A run, the faults that strike it, and looks at what it holds."""

    def __init__(self, folder: Path, num_steps: int, seed: int) -> None:
        self.folder, self.num_steps, self.draw = folder, num_steps, random.Random(seed)
        self.faults: Counter[str] = Counter()
        self.looks: list[dict[str, float]] = []
        self.events: Counter[str] = Counter()
        self._size, self._workers = SIZES[1], []
        self._me = psutil.Process()
        self.config = load_config("tiny", [
            f"train.num_steps={num_steps}", f"train.prompts_per_step={PROMPTS_PER_STEP}", "train.max_staleness=1",
            f"learner.prompts_per_mini_batch={PROMPTS_PER_STEP}", "eval.num_samples=2", "rollout.num_workers=1..3",
            "rollout.group_size=4", "rollout.progress_timeout_s=2", "rollout.drain_timeout_s=2",
            "rollout.max_groups_in_flight=4", "rollout.max_restarts=100000", "rollout.restart_window_s=5",
            "train.max_lost_fraction=0.5",
        ])  # fmt: skip

    async def run(self) -> dict[str, object]:
        config, folder = self.config, self.folder
        (folder / "config.yaml").write_text(to_yaml(config))
        display = Display(config, Console(file=io.StringIO(), width=200))
        pool = RolloutPool(max_groups_in_flight=4, group_timeout_s=30.0)
        judges = JudgePool(None, config.judge, local=[ExactBackend()])
        watch = JudgeWatch(judges, config, warn=display.warn)
        fleet, learner = Fleet(rollouts=pool, judges=judges), ScriptedLearner()
        weights, updates = WeightChannel(learner, pool, timeout_s=2.0), UpdateStream(learner, min_groups=1)
        desk = SizeDesk(folder, config)
        observer = Observer(folder, config, desk=desk, screen=display, publish=lambda readings: None)
        members = self._members(pool, weights, observer)
        parts = Parts(
            fleet=fleet,
            learner=learner,
            weights=weights,
            collector=Collector(
                fleet,
                config,
                prompts=PromptCursor(dataset="train", num_rows=500, seed=0),
                skips=SkipLedger(max_skipped_fraction=0.01),
                judge_watch=watch,
                published=weights.published,
                last_step=0,
                on_trained=None,
            ),
            updates=updates,
            checkpoints=NoCheckpoints(self._after_step),
            journal=Journal(
                folder, config, step=0, clock=RunClock(0.0), judge_watch=watch, display=display, observer=observer,
                lease=None,
            ),
            heldout=range(500),
            display=display,
        )  # fmt: skip
        async with observer:
            await members.up()
            try:
                summary = await train(config, parts)
            finally:
                await members.close()
                learner.close()
                for worker in self._workers:
                    worker.kill()
        return {"steps": summary["steps"]}

    def _members(self, pool, weights, observer) -> Members:
        placement = Placement(worker=Resources(num_cpus=0.5, num_gpus=0), rank=Resources(num_cpus=0, num_gpus=0))
        create = WorkerStarter(self.config, placement)

        def start(slot, attempt):
            worker = create(slot, attempt)
            self._workers = [*self._workers[-5:], worker]
            return worker

        def emit(event):
            self.events[event.kind] += 1
            observer.add_event(event)

        self.members = Members(pool, weights, start, policy_of(self.config.rollout), desired=self._desired, emit=emit)
        return self.members

    def _desired(self) -> Range:
        return self._size

    async def _after_step(self, step: int) -> None:
        if step % max(1, self.num_steps // NUM_LOOKS) == 0:
            self._look(step)
        if self.draw.random() < FAULT_SHARE:
            await self._strike(self.draw.choice(KINDS))

    async def _strike(self, kind: str) -> None:
        self.faults[kind] += 1
        if kind == "scale":
            self._size = SIZES[SIZES.index(self._size) - 1]
        elif (victim := self._victim()) is not None:
            actor = victim.worker._actor
            match kind:
                case "wedge":
                    actor.wedge.remote()
                case "slow sync":
                    actor.delay_next_version.remote(1.0)
                case "failed sample":
                    actor.fail_next.remote()
                case _:
                    await self._signal(victim, {"kill": "SIGKILL", "stop": "SIGSTOP", "terminate": "SIGTERM"}[kind])

    def _victim(self):
        serving = [seat for seat in self.members._seats.values() if seat.state.value == "serving"]
        return self.draw.choice(serving) if serving else None

    async def _signal(self, victim, name: str) -> None:
        try:
            pid = await asyncio.wait_for(asyncio.wrap_future(victim.worker._actor.pid.remote().future()), 1.0)
            os.kill(pid, getattr(signal, name))
        except (TimeoutError, ray.exceptions.RayError, ProcessLookupError):
            self.faults["came too late"] += 1  # the last fault was this worker's too

    def _look(self, step: int) -> None:
        self.looks.append({"step": step, "tasks": len(asyncio.all_tasks()), **held(self._me)})
        print(json.dumps(self.looks[-1]), flush=True)


def held(process: psutil.Process) -> dict[str, float]:
    """What this process and its Ray hold."""
    total, free = ray.cluster_resources(), ray.available_resources()
    return {
        "rss_mb": round(process.memory_info().rss / 1e6, 1),
        "files": process.num_fds(),
        "threads": process.num_threads(),
        "processes": sum(child.status() != psutil.STATUS_ZOMBIE for child in process.children(recursive=True)),
        "store_mb": round((total["object_store_memory"] - free.get("object_store_memory", 0)) / 1e6, 1),
        "actors": sum(entry["State"] != "DEAD" for entry in ray._private.state.state.actor_table(None).values()),
        "shm_mb": round(own_shared_memory(process) / 1e6, 1),
    }


def own_shared_memory(process: psutil.Process) -> int:
    """Bytes of files under /dev/shm that a process of ours keeps open, each once; without Ray's own store."""
    sizes = {}
    for one in (process, *process.children(recursive=True)):
        for link in Path(f"/proc/{one.pid}/fd").glob("*"):
            try:
                name = os.readlink(link)
                if name.startswith("/dev/shm/") and "plasma" not in name:
                    stat = link.stat()
                    sizes[stat.st_ino] = stat.st_blocks * 512
            except OSError:
                continue
    return sum(sizes.values())


def soak(num_steps: int, seed: int) -> dict[str, object]:
    """Run it on a Ray of its own; what was found."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(starting, "RolloutWorker", QuickWorker)
        with ray_on_this_machine(address="local", object_store_memory=STORE_BYTES):
            before, started = held(psutil.Process()), time.monotonic()
            run = Soak(Path(folder), num_steps, seed)
            ended = asyncio.run(run.run())
            seconds = time.monotonic() - started
            after = settled(before)
        entries = [json.loads(line) for line in (Path(folder) / "ledger.jsonl").read_text().splitlines()]
    consumed = [uid for entry in entries for uid in entry["samples"]]
    expected = [ref.uid for ref in PromptCursor(dataset="train", num_rows=500, seed=0).take(len(consumed))]
    return {
        "seed": seed,
        **ended,
        "seconds": round(seconds, 1),
        "faults": dict(run.faults),
        "events": dict(run.events),
        "ledger_whole": [entry["step"] for entry in entries] == list(range(1, num_steps + 1)),
        "samples_once_in_order": consumed == expected,
        "before": before,
        "looks": run.looks,
        "after": after,
    }


def settled(before: dict[str, float], within_s: float = 30.0) -> dict[str, float]:
    """What is held once Ray has taken back what the run has given up."""
    give_up_at = time.monotonic() + within_s
    while True:
        now = held(psutil.Process())
        done = all(now[name] <= before[name] for name in ("actors", "store_mb", "processes"))
        if done or time.monotonic() > give_up_at:
            return now
        time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = soak(arguments.steps, arguments.seed)
    print(json.dumps(found) if arguments.json else json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
