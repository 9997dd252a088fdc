"""M6: what groups of G episodes compute with both turns, against each distinct picture and prefix computed once.

    uv run python -m tests.bench.reuse [--json] [--shape tiny|mini|3b] [--gpus 0|1] [--pictures 8] [KEY=VALUE ...]

All groups start at once on one engine, in which half of the episodes ask (`--share`). Counted, not timed:

    encoder_runs_per_picture     pictures through the vision tower / distinct views shown
    prefilled_per_prefix_token   prompt tokens computed / distinct prompt tokens that no turn had generated
    first_turn_reused            share of a first turn's tokens that its second turn found in the cache
    reused_across_versions       prompt tokens of a new version's first turns that were found in the cache

and the same without caches. The pictures are played again under the next version of the weights. Prefixes are shared in
whole blocks (16 tokens on a GPU, 32 on a CPU): every turn computes what is left over, half a block on average.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence

from actors.play import Views
from tests.bench.engine_counters import CountedTurn, CountingEngine, reused_share, tokens_to_prefill
from tests.bench.playing import Player, bench_config, noise_views, start_player


async def play_counted(player: Player, engine: CountingEngine, views: Sequence[Views]) -> dict[str, float]:
    """What one group per picture shows and computes."""
    await engine.start_counting()
    started = time.perf_counter()
    await player.play(views, num_episodes=player.config.rollout.group_size)
    seconds = time.perf_counter() - started
    turns = engine.turns
    shown = {key for turn in turns for key in turn.images}
    counted = await engine.compute()
    needed, prefilled = tokens_to_prefill(turns), sum(turn.num_prefilled for turn in turns)
    return {
        "episodes": sum(len(turn.images) == 1 for turn in turns),
        "asked": sum(len(turn.images) == 2 for turn in turns),
        "pictures_shown": len(shown),
        "pictures_encoded": counted["pictures"],
        "encoder_runs_per_picture": counted["pictures"] / len(shown),
        "encoder_runs_per_picture_without_caches": sum(len(turn.images) for turn in turns) / len(shown),
        "prefix_tokens": needed,
        "prefilled_tokens": prefilled,
        "prefilled_per_prefix_token": prefilled / needed,
        "prefilled_per_prefix_token_without_caches": sum(len(turn.prompt_ids) for turn in turns) / needed,
        "first_turn_reused": reused_share(turns),
        "first_seen_tokens_found": first_seen_tokens_found(turns),
        "seconds": seconds,
    }


def first_seen_tokens_found(turns: Sequence[CountedTurn]) -> int:
    """Of each picture's first turns, the one that found fewest tokens in the cache: what an earlier play left there."""
    fewest: dict[str, int] = {}
    for turn in turns:
        if len(turn.images) == 1:
            fewest[turn.images[0]] = min(turn.num_cached, fewest.get(turn.images[0], turn.num_cached))
    return max(fewest.values())


async def measure(
    player: Player, engine: CountingEngine, *, num_pictures: int, side: int, share: float
) -> dict[str, float]:
    sizes = [(side, side), (side // 2, side), (side, side // 2), (side // 2, side // 2)]
    block = 2 * player.spec.token_side
    sizes = [(height // block * block, width // block * block) for height, width in sizes]
    asking = player.asking(share)
    await asking.play(noise_views(player.spec, sizes[:1], seed=1), num_episodes=1)
    views = noise_views(player.spec, [sizes[index % len(sizes)] for index in range(num_pictures)])
    first = await play_counted(asking, engine, views)
    await engine.set_version(engine.version + 1)
    second = await play_counted(asking, engine, views)
    return {
        **{name: figure for name, figure in first.items() if name != "first_seen_tokens_found"},
        "reused_across_versions": second["first_seen_tokens_found"],
        "pictures_encoded_under_the_next_version": second["pictures_encoded"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--shape", default="tiny")
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--side", type=int, default=448, help="pixels of the largest picture's sides")
    parser.add_argument("--share", type=float, default=0.5, help="of the episodes that ask")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    config = bench_config(
        arguments.shape, side=arguments.side, on_gpu=arguments.gpus > 0, overrides=arguments.overrides
    )
    with asyncio.Runner() as runner:

        async def run() -> dict[str, float]:
            player = await start_player(config, CountingEngine)
            assert isinstance(player.engine, CountingEngine)
            try:
                return await measure(
                    player,
                    player.engine,
                    num_pictures=arguments.pictures,
                    side=arguments.side,
                    share=arguments.share,
                )
            finally:
                player.engine.shutdown()

        figures = runner.run(run())
    for name, figure in figures.items():
        print(f"{name:45} {figure:10.3f}")
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
