"""What a group shares, by vLLM's own counters: a real engine in this process, all of whose episodes play both turns."""

import asyncio

import pytest

from actors.engine.engine_config import CPU_BLOCK_TOKENS
from tests.bench.engine_counters import CountingEngine
from tests.bench.playing import bench_config, noise_views, start_player
from tests.bench.reuse import play_counted

pytestmark = [
    pytest.mark.ray,  # not for Ray: an engine wants the machine for itself
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("default"),  # vLLM's own
]
SIZES = [(1008, 1008), (1008, 1008), (784, 1008)]


@pytest.fixture(scope="module")
def played():
    """(the first turns of each picture, figures) under one version of the weights, then under the next."""
    # With random weights no two replies are equal, which would share more, and all are as long as a thought.
    overrides = ["model.load=random", "rollout.max_turn_tokens=128"]
    config = bench_config("tiny", side=1008, on_gpu=False, overrides=overrides)

    async def play():
        player = await start_player(config, CountingEngine)
        try:
            views, found = noise_views(player.spec, SIZES), []
            for version in range(2):
                await player.engine.set_version(version)
                figures = await play_counted(player.asking(1.0), player.engine, views)
                found.append((list(player.engine.turns), figures))
            return found
        finally:
            player.engine.shutdown()

    return asyncio.run(play())


def test_every_picture_is_encoded_once_per_version(played):
    for _, figures in played:
        assert figures["episodes"] == 8 * len(SIZES)
        assert figures["asked"] == 8 * len(SIZES)
        assert figures["pictures_shown"] == 2 * len(SIZES)
        assert figures["pictures_encoded"] == figures["pictures_shown"]


def test_every_prefix_is_computed_once_although_a_group_starts_at_once(played):
    """All whole blocks are found by all turns but the first."""
    for turns, figures in played:
        first = [turn for turn in turns if len(turn.images) == 1]
        for view in {turn.images for turn in first}:
            cached = sorted(turn.num_cached for turn in first if turn.images == view)
            num_tokens = next(len(turn.prompt_ids) for turn in first if turn.images == view)
            assert cached == [0] + [(num_tokens - 1) // CPU_BLOCK_TOKENS * CPU_BLOCK_TOKENS] * 7
        left_over = CPU_BLOCK_TOKENS * len(turns)
        assert figures["prefilled_tokens"] < figures["prefix_tokens"] + left_over
        assert figures["prefilled_per_prefix_token"] <= 1.05
        assert figures["first_turn_reused"] >= 0.95


def test_nothing_is_found_that_other_weights_computed(played):
    (_, before), (turns, after) = played
    assert {turn.salt for turn in turns} == {"version 1"}
    assert after["first_seen_tokens_found"] == 0
    assert after["pictures_encoded"] == before["pictures_encoded"]
