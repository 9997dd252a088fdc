"""M12: the judges' pool against Ray Serve as it comes, Ray Serve tuned, and bare asynchronous actors.

    uv run python -m tests.bench.judge_pool [--rounds 5] [--seconds 50] [--default-seconds 150]

First, verdicts per second at saturation, by the rules: every contender has as many replicas, in alternating rounds, and
every ratio is the median of the rounds' own ratios. Then, for a step in load from 0.25 to 2.5 replicas' worth of
delayed judging: seconds until the right size by Little's law, replicas beyond it, calls lost and doubled. The tuned
Serve has our delays and metrics, and takes twice its target per replica; the default Serve has its own delays and its
own bound of 5 calls per replica, and the same target.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from statistics import median
from typing import Any

import ray
from ray import serve

from cluster.judging.arrivals import Latency
from cluster.judging.load import LoadPlan, StartPool, follow_load, own_cluster, plan_load, running_pool
from cluster.judging.saturation import verdicts_per_s
from configs.judges import JudgeConfig
from judge.chain import make_judge
from judge.deployment import DEPLOYMENT_NAME, JudgeReplica, ServeJudgeHandle, delete_application, serve_options
from judge.verdict import Judge, JudgeRequest

GROUP_SIZE = 8
NUM_REPLICAS = 2
LATENCY = Latency(median_s=0.5, sigma=0.5)

Grade = Callable[[JudgeRequest], Awaitable[object]]


@contextlib.asynccontextmanager
async def other_pool(
    options: dict[str, Any], config: JudgeConfig, make: Callable[[JudgeConfig], Judge] = make_judge
) -> AsyncIterator[tuple[ServeJudgeHandle, str]]:
    """A Serve deployment of the same judge under other options."""
    name = f"peer-{secrets.token_hex(3)}"
    serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR", "enable_access_log": False})
    application = serve.deployment(**{**options, "name": DEPLOYMENT_NAME})(JudgeReplica).bind(config, make)
    handle = ServeJudgeHandle(await asyncio.to_thread(serve.run, application, name=name, route_prefix=None))
    try:
        yield handle, name
    finally:
        handle.close()
        await asyncio.to_thread(delete_application, name)


def tuned(config: JudgeConfig) -> dict[str, Any]:
    """Our delays and metrics; room for twice the target."""
    room = int(2 * config.target_ongoing_requests)
    return {**serve_options(config), "max_ongoing_requests": room}


def default(config: JudgeConfig) -> dict[str, Any]:
    """What Serve does when it is told no more than the bounds and the target."""
    scaling = {"min_replicas": config.min_replicas, "max_replicas": config.max_replicas}
    scaling["target_ongoing_requests"] = config.target_ongoing_requests
    return {"ray_actor_options": {"num_cpus": 0}, "autoscaling_config": scaling}


@contextlib.contextmanager
def bare_actors(config: JudgeConfig) -> Any:
    """Asynchronous actors asked in turn."""
    actor_class = ray.remote(JudgeReplica).options(num_cpus=0, max_concurrency=1000)
    actors = [actor_class.remote(config, make_judge) for _ in range(NUM_REPLICAS)]
    ray.get([actor.pid.remote() for actor in actors], timeout=60)
    turns = itertools.cycle(actors)

    async def grade(request: JudgeRequest) -> object:
        return await next(turns).grade.remote(request)

    try:
        yield grade
    finally:
        for actor in actors:
            ray.kill(actor)


async def saturation(num_rounds: int) -> dict[str, list[float]]:
    """Verdicts per second of every contender, round by round."""
    config = JudgeConfig(min_replicas=NUM_REPLICAS, max_replicas=NUM_REPLICAS)
    plain = {"ray_actor_options": {"num_cpus": 0}, "num_replicas": NUM_REPLICAS}
    async with contextlib.AsyncExitStack() as up:
        ours, _ = await up.enter_async_context(running_pool(config))
        default_serve, _ = await up.enter_async_context(other_pool(plain, config))
        actors: Grade = up.enter_context(bare_actors(config))
        contenders: dict[str, tuple[Grade, int]] = {
            "ours: groups": (ours.grade, GROUP_SIZE),
            "Serve tuned: answers": (ours.grade, 1),
            "Serve default: answers": (default_serve.grade, 1),
            "actors: answers": (actors, 1),
            "actors: groups": (actors, GROUP_SIZE),
        }
        for grade, size in contenders.values():
            await verdicts_per_s(grade, size, seconds=1.0)
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(num_rounds):
            order = list(contenders.items())
            for name, (grade, size) in order if number % 2 else reversed(order):
                rates[name].append(await verdicts_per_s(grade, size))
        return rates


def load_of(seconds: float, seed: int) -> LoadPlan:
    return plan_load(
        JudgeConfig(), group_size=GROUP_SIZE, seconds=seconds, rate=None, latency=LATENCY, burst=1.5, seed=seed
    )


async def scaling(seconds: float, default_seconds: float, num_rounds: int) -> dict[str, list[dict[str, object]]]:
    """What each pool did under the same loads."""
    found: dict[str, list[dict[str, object]]] = {"ours": [], "Serve tuned": [], "Serve default": []}
    for seed in range(num_rounds):
        plan = load_of(seconds, seed)
        found["ours"].append((await follow_load(plan)).figures())
        found["Serve tuned"].append((await follow_load(plan, start_pool=peer(tuned))).figures())
    # 30 s of delay and metrics every 10 s: the default needs a longer look, and one is enough.
    found["Serve default"].append((await follow_load(load_of(default_seconds, 0), start_pool=peer(default))).figures())
    return found


def peer(options: Callable[[JudgeConfig], dict[str, Any]]) -> StartPool:
    return lambda config, make: other_pool(options(config), config, make)


async def measure(arguments: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, list[dict[str, object]]]]:
    with own_cluster():
        rates = await saturation(arguments.rounds)
        print_rates(rates)
        return rates, await scaling(arguments.seconds, arguments.default_seconds, arguments.loads)


def print_rates(rates: dict[str, list[float]]) -> None:
    ours = rates["ours: groups"]
    print(f"{'verdicts/s at saturation':28} {'median':>8} {'ours is':>8}")
    for name, rounds in rates.items():
        ratio = median(mine / theirs for mine, theirs in zip(ours, rounds, strict=True))
        print(f"{name:28} {median(rounds):8.0f} {ratio:7.2f}x", flush=True)


def print_scaling(found: dict[str, list[dict[str, object]]]) -> None:
    times = ("right_size_s", "release_s", "queue_wait_p50_s", "queue_wait_p95_s")
    names = ("right_size", *times, "overshoot", "lost", "doubled")
    for contender, rounds in found.items():
        for figures in rounds:
            cells = (f"{name} {_shown(figures[name])}" for name in names)
            print(f"{contender:14} {', '.join(cells)}")


def _shown(figure: object) -> str:
    return "never" if figure is None else f"{figure:.3g}" if isinstance(figure, float) else str(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loads", type=int, default=3, help="seeded loads per pool")
    parser.add_argument("--seconds", type=float, default=50.0)
    parser.add_argument("--default-seconds", type=float, default=150.0)
    rates, found = asyncio.run(measure(arguments := parser.parse_args()))
    print_scaling(found)
    print(json.dumps({"rates": rates, "scaling": found, "rounds": arguments.rounds}))


if __name__ == "__main__":
    main()
