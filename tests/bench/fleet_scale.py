"""What the driver spends on a large fleet: scripted workers in one process, in virtual time.

    uv run python -m tests.bench.fleet_scale [--workers 1000] [--groups-per-worker 8] [--json]

Workers join, play, die and are replaced as in a run: members, pool and weight channel are the real ones. Printed are
the shares of a step that reconciling and routing take (processor time over the step's virtual time), and the messages
to workers per group, for a small and for the large fleet.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import time
from collections import Counter
from typing import Any

from actors.episode import SampleRef
from actors.errors import RolloutError
from actors.fleet.membership import Policy, reconcile
from actors.fleet.pool import RolloutPool
from actors.play import PlayRequest
from cluster.runtime.members import Members
from cluster.weights import WeightChannel
from configs.ranges import Range
from tests.fakes import FakeWeightSource, make_episode, make_group
from tests.virtual_time import VirtualLoop, now

GROUP_S = 30.0
"""Mean time of a group."""
DEATHS_PER_STEP = 0.01
"""Share of the workers."""
NUM_STEPS = 3
POLICY = Policy(
    start_timeout_s=900.0,
    progress_timeout_s=60.0,
    drain_timeout_s=120.0,
    max_restarts=3,
    restart_window_s=600.0,
    waits_when_none_left=True,
    wait_timeout_s=1800.0,
)


class Everywhere:
    """A cluster with room for all."""

    draining: dict[str, float] = {}

    class nodes:
        @staticmethod
        def get(actor_id: str) -> str:
            return "node"


class ScriptedWorker:
    """Plays groups of random length, and counts what it is asked."""

    num_receivers = 1

    def __init__(self, slot: int, attempt: int, draw: random.Random, messages: Counter[str]) -> None:
        self.name, self.actor_id = f"rollout worker {slot}", f"{slot}.{attempt}"
        self._draw, self._messages = draw, messages
        self._death: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def ready(self) -> None:
        await asyncio.sleep(self._draw.uniform(10, 60))

    async def ended(self) -> str:
        return await asyncio.shield(self._death)

    def die(self) -> None:
        if not self._death.done():
            self._death.set_result("killed")

    kill = die

    async def play(self, request: PlayRequest) -> tuple[Any, Any]:
        self._messages["play"] += 1
        await asyncio.wait([self._death], timeout=self._draw.uniform(0.5, 1.5) * GROUP_S)
        if self._death.done():
            raise RolloutError("killed")
        return GROUP, None

    async def check_health(self) -> None:
        self._messages["check_health"] += 1

    async def _sync(self, *_: object) -> float:
        self._messages["weights"] += 1
        return 0.0

    connect_weights = receive_weights = commit_weights = disconnect_weights = sleep = _sync

    async def shutdown(self) -> None: ...


GROUP = make_group([make_episode()])


async def measure(num_workers: int, groups_per_worker: int) -> dict[str, float]:
    draw, messages, spent = random.Random(0), Counter[str](), Counter[str]()
    workers: list[ScriptedWorker] = []

    def start(slot: int, attempt: int) -> ScriptedWorker:
        workers.append(ScriptedWorker(slot, attempt, draw, messages))
        return workers[-1]

    async def look(actor_ids: object) -> type[Everywhere]:
        return Everywhere

    pool = RolloutPool(max_groups_in_flight=4, group_timeout_s=600.0)
    learner = FakeWeightSource(keeps_last=True)
    channel = WeightChannel(learner, pool, timeout_s=120.0)  # type: ignore[arg-type]
    size = Range(minimum=num_workers, maximum=num_workers)
    members = Members(pool, channel, start, POLICY, desired=lambda: size, emit=lambda event: None, look=look)  # type: ignore[arg-type]
    _time(members, "_act", spent, "reconcile")
    for method in ("_assign_workers", "_release", "_set_load", "_drop"):
        _time(pool, method, spent, "routing")
    await members.up()
    await channel.publish()
    messages.clear()
    spent.clear()
    started, cpu = now(), time.process_time()
    num_groups = num_workers * groups_per_worker
    for _ in range(NUM_STEPS):
        groups = [asyncio.create_task(pool.play(request(number))) for number in range(num_groups)]
        await asyncio.sleep(GROUP_S / 2)
        for worker in draw.sample(workers, int(DEATHS_PER_STEP * num_workers)):
            worker.die()
        await asyncio.gather(*groups)
        learner.version += 1
        await channel.publish()
    step_s = (now() - started) / NUM_STEPS
    cpu_s = (time.process_time() - cpu) / NUM_STEPS
    await members.close()
    return {
        "workers": num_workers,
        "groups_per_step": num_groups,
        "step_s": step_s,
        "reconcile_share": spent["reconcile"] / NUM_STEPS / step_s,
        "routing_share": spent["routing"] / NUM_STEPS / step_s,
        "driver_cpu_share": cpu_s / step_s,
        "messages_per_group": (messages["play"] + messages["check_health"]) / (NUM_STEPS * num_groups),
        "reconcile_ms": 1000 * _time_reconcile(members),
    }


def request(number: int) -> PlayRequest:
    ref = SampleRef(dataset="train", row=number, uid=f"0-{number}")
    return PlayRequest(ref=ref, kind="policy", greedy=False, num_episodes=1, run="r", step=1, attempt=0)


def _time(owner: Any, method: str, spent: Counter[str], kind: str) -> None:
    """Add up what the outermost calls of a method take."""
    call = getattr(owner, method)

    def timed(*arguments: Any) -> Any:
        if spent["depth " + kind]:
            return call(*arguments)
        spent["depth " + kind] = 1
        started = time.thread_time()
        try:
            return call(*arguments)
        finally:
            spent[kind] += time.thread_time() - started  # type: ignore[assignment]
            spent["depth " + kind] = 0

    setattr(owner, method, timed)


def _time_reconcile(members: Members) -> float:
    """Seconds of one look at the whole fleet at rest."""
    seen = members._observe()
    started = time.thread_time()
    for _ in range(10):
        reconcile(seen, members._policy)
    return (time.thread_time() - started) / 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--groups-per-worker", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    settings = parser.parse_args()
    logging.disable(logging.WARNING)
    sizes = []
    for num_workers in (10, settings.workers):
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            sizes.append(runner.run(measure(num_workers, settings.groups_per_worker)))
    if settings.json:
        print(json.dumps({"small": sizes[0], "large": sizes[1]}))
    else:
        for size in sizes:
            print("  ".join(f"{name} {value:.4g}" for name, value in size.items()))


if __name__ == "__main__":
    main()
