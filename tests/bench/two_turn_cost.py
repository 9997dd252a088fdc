"""M5: what an episode computes when a share p of the episodes asks, against always showing the full view.

    uv run python -m tests.bench.two_turn_cost [--json] [--shape mini|3b] [--gpus 0|1] [--side 1008] [KEY=VALUE ...]

One episode per picture, so that nothing is shared but within an episode; of every turn one token is sampled, so that
nothing is decoded. `compute` is the device's time in the vision tower and in the language model per episode (by events,
or by the clock on a CPU); its limit is (1/4 + p) of always-full. Rounds alternate, medians are compared. Text and
attention are part of what is measured: tokens are printed beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from statistics import median

from actors.play import Kind
from tests.bench.engine_counters import CountingEngine
from tests.bench.playing import Player, bench_config, noise_views, start_player

SHARES = (0.0, 0.3, 0.6, 1.0)


async def one_round(
    player: Player, share: float | None, *, side: int, num_pictures: int, seed: int
) -> dict[str, float]:
    """Play new pictures, always-full where `share` is None."""
    engine = player.engine
    assert isinstance(engine, CountingEngine)
    views = noise_views(player.spec, [(side, side)] * num_pictures, seed=seed)
    kind: Kind = "always_full" if share is None else "policy"
    await engine.start_counting()
    started = time.perf_counter()
    groups = await player.asking(share or 0.0).play(views, kind=kind, num_episodes=1, max_tokens=1)
    seconds = time.perf_counter() - started
    computed = await engine.compute()
    episodes = [episode for (episode,) in groups]
    return {
        "asked": sum(episode.asked for episode in episodes) / num_pictures,
        "visual_tokens": sum(episode.num_visual_tokens for episode in episodes) / num_pictures,
        "prefilled_tokens": sum(turn.num_prefilled for turn in engine.turns) / num_pictures,
        "encoder_ms": 1000 * computed["encoder_s"] / num_pictures,
        "language_ms": 1000 * computed["language_s"] / num_pictures,
        "compute_ms": 1000 * (computed["encoder_s"] + computed["language_s"]) / num_pictures,
        "wall_ms": 1000 * seconds / num_pictures,
    }


async def measure(player: Player, *, side: int, num_pictures: int, rounds: int) -> dict[str, dict[str, float]]:
    ways: dict[str, float | None] = {"always_full": None, **{f"p={share:g}": share for share in SHARES}}
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for index in range(rounds + 1):
        for place, (name, share) in enumerate(ways.items()):
            seed = index * len(ways) + place
            figures = await one_round(player, share, side=side, num_pictures=num_pictures, seed=seed)
            if index:  # the first warms up
                seen[name].append(figures)
    found = {name: {key: median(each[key] for each in runs) for key in runs[0]} for name, runs in seen.items()}
    full = found["always_full"]
    for name, figures in found.items():
        limit = 1.0 if name == "always_full" else 0.25 + figures["asked"]
        for key in ("compute", "encoder", "language"):
            ratio = figures[f"{key}_ms"] / full[f"{key}_ms"]
            figures |= {f"{key}_ratio": ratio, f"{key}_against_limit": ratio / limit}
        figures["limit"] = limit
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--shape", default="mini")
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--side", type=int, default=448, help="pixels of the pictures' sides, a multiple of 56")
    parser.add_argument("--pictures", type=int, default=8, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    config = bench_config(
        arguments.shape,
        side=arguments.side,
        on_gpu=arguments.gpus > 0,
        overrides=["rollout.enforce_eager=true", *arguments.overrides],
    )

    async def run() -> dict[str, dict[str, float]]:
        player = await start_player(config, CountingEngine)
        try:
            return await measure(player, side=arguments.side, num_pictures=arguments.pictures, rounds=arguments.rounds)
        finally:
            player.engine.shutdown()

    found = asyncio.run(run())
    columns = list(found["always_full"])
    print(f"{'':12}" + "".join(f"{column:>{len(column) + 2}}" for column in columns))
    for name, figures in found.items():
        print(f"{name:12}" + "".join(f"{figures[column]:{len(column) + 2}.2f}" for column in columns))
    if arguments.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
