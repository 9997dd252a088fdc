"""ZeRO-3 over two GPUs at the real vocabulary, with random weights and random lengths.

    python -m pytest -n 0 -s -m gpu tests/gpu/test_two_ranks.py

About two minutes on two H200. The comparison runs in float32 with a few layers of the 3B shape, at its full width and
vocabulary; the run in bfloat16 has all layers and must finish.
"""

import random
import time

import numpy as np
import pytest
import torch

from learner.state.checkpoint import CheckpointFolder
from learner.state.share_files import SavedLearner
from learner.state.snapshot import Piece
from tests.bench.model_shape import write_shape
from tests.learner.builders import make_group
from tests.learner.ranks import play
from tests.learner.saved import seal

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(600),
]
VOCABULARY = 151_936
SIZES = ((224, 224), (448, 448), (336, 560))
LEARNER = {
    "num_gpus": 1,
    "zero_stage": 3,
    "param_persistence_threshold": 0,
    "gradient_checkpointing": True,
    "kl_coefficient": 0.01,
    "learning_rate": 1e-6,
    "update_timeout_s": 240.0,
}


def drawn_groups(seed, *, num_groups, group_size, num_words):
    rng = random.Random(seed)
    return [
        make_group(
            100 * seed + index,
            group_size=group_size,
            size=rng.choice(SIZES),
            num_words=rng.randint(*num_words),
            ask_share=rng.random(),
            vocab_size=VOCABULARY,
        )
        for index in range(num_groups)
    ]


def num_tokens(groups):
    return sum(len(episode.token_ids) for group in groups for episode in group.played.episodes)


def saved_state(checkpoints, place, shares):
    """Weight and moments [3, elements] by parameter."""
    name = seal(checkpoints, 3, place, shares)
    saved = SavedLearner.open(checkpoints.storage, name)
    state = {}
    for parameter, shape in saved.shapes.items():
        size = int(np.prod(shape))
        state[parameter] = np.empty((3, size), np.float32)
        saved.fill(state[parameter], [Piece(name=parameter, start=0, stop=size, offset=0)], saved.shapes)
    return state


def test_three_updates_of_two_ranks_under_zero_3_equal_those_of_one(tmp_path):
    model, states = tmp_path / "model", {}
    write_shape("3b", model, num_layers=4)
    batches = [drawn_groups(seed, num_groups=4, group_size=4, num_words=(20, 400)) for seed in range(3)]
    norms = {}
    for world_size in (1, 2):
        checkpoints = CheckpointFolder(tmp_path / f"state-{world_size}")
        place = checkpoints.begin(3)
        learner = {**LEARNER, "prompts_per_mini_batch": 4, "max_tokens_per_micro_batch": 2048}
        settings = {"learner": learner, "model": {"path": str(model), "load": "random", "dtype": "float32"}}
        updates = [("update", groups) for groups in batches]
        calls = [("shards", None), *updates, ("save", (checkpoints.url, place))]
        ranks = play(world_size, [(settings, calls)], chunk_logits=VOCABULARY * 128, on_gpus=True, deadline_s=240)
        states[world_size] = saved_state(checkpoints, place, [results[-1] for results in ranks])
        for shards, *reports, _ in ranks:
            assert all(held <= -(-whole // world_size) for held, whole, _ in shards.values())
            assert [report.optimizer_step for report in reports] == [1, 2, 3]
        norms[world_size] = [report.metrics["learner/grad_norm"] for report in ranks[0][1:4]]
    assert norms[2] == pytest.approx(norms[1], rel=1e-4)
    furthest, moment_gap = 0.0, 0.0
    for name, expected in states[1].items():
        gap = states[2][name] - expected
        furthest = max(furthest, float(np.abs(gap[0]).max()))
        if np.any(expected[1]):
            moment_gap = max(moment_gap, float(np.linalg.norm(gap[1]) / np.linalg.norm(expected[1])))
    print(f"\ngradient norms {norms}; weights differ by {furthest:.2g}, moments by {moment_gap:.2g} of their norm")
    assert furthest <= 1e-6
    assert moment_gap <= 1e-3


def test_the_whole_3b_shape_learns_in_bfloat16_under_zero_3(tmp_path):
    write_shape("3b", tmp_path)
    batches = [drawn_groups(seed, num_groups=16, group_size=8, num_words=(50, 900)) for seed in range(3)]
    learner = {**LEARNER, "prompts_per_mini_batch": 16, "max_tokens_per_micro_batch": 16384}
    settings = {"learner": learner, "model": {"path": str(tmp_path), "load": "random", "dtype": "bfloat16"}}
    started = time.monotonic()
    first, second = play(
        2, [(settings, [("update", groups) for groups in batches])], chunk_logits=None, on_gpus=True, deadline_s=300
    )
    print(f"\n{time.monotonic() - started:.0f} s with the start")
    for groups, report, other in zip(batches, first, second, strict=True):
        assert report.optimizer_step == other.optimizer_step
        speed = num_tokens(groups) / report.seconds
        memory_gib, norm = (report.metrics[f"learner/{name}"] for name in ("peak_memory_gib", "grad_norm"))
        print(f"{num_tokens(groups)} tokens, {speed:.0f} tokens/s, {memory_gib:.1f} GiB, gradient norm {norm:.3g}")
    assert first[-1].optimizer_step == 3
