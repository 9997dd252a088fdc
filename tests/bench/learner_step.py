"""What one update of the learner costs, by technique, and against the library's plain forward pass.

    python -m tests.bench.learner_step --json                         # the tiny shape on the CPU, against a plain loop
    python -m tests.bench.model_shape 3b DIR
    python -m tests.bench.learner_step --json --model DIR --gpus 1    # a GPU: techniques, memory, use of the card
    python -m tests.bench.learner_step --model DIR --gpus 1 --variants ours --profile    # kernels by class and stage
    python -m tests.bench.learner_step --json --model DIR --gpus 1 --lora 64             # adapters, weights frozen

One process, one rank, without Ray and vLLM. Every line of progress is a variant of the same episodes: the medians of
`--repeats` updates after one that warms caches up. On the CPU the plain loop alternates with ours.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from configs.learner import LearnerConfig, LoraConfig, WeightsConfig
from configs.schema import ModelConfig
from learner.batches.batch import PlannedEpisode, TrainingGroup
from learner.batches.plan import PiecePlan, RankPlan, plan_mini_batches, split_views
from learner.fusing import allow_fusing
from learner.memory import learns_in_rounds
from learner.worker import LearnerRank
from tests.bench.flops import matmul_peak, update_flops, wait
from tests.bench.kernel_profile import recorded, staged, table
from tests.bench.plain_loop import PlainLoop
from tests.learner.builders import images_of, make_group, rows_of, save_model, small_model

VARIANTS = {
    "ours": {},
    "no_fused_kernels": {"fuses": False},
    "separate_beginnings": {"shares": False},
    "and_tower_per_micro_batch": {"shares": False, "tower_once": False},
    "everything_recomputed": {"room": 0},
    "nothing_recomputed": {"room": 10**15},
}
"""On a GPU. What recomputes nothing, whether there is memory for it or not, comes last."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="folder of a shape, for random weights; default: the tiny shape")
    parser.add_argument("--gpus", type=int, default=0, choices=(0, 1))
    parser.add_argument("--stage", type=int, default=2)
    parser.add_argument("--episodes", type=int, help="default: 256 of the tiny shape, 64 of a model's")
    parser.add_argument("--group-sizes", type=int, nargs="+", help="default: 8; 8 and 16 of a model's shape")
    parser.add_argument("--side", type=int, help="pixels of the full view's side, of 28 a token; default: 224, or 1008")
    parser.add_argument("--words", type=int, help="most generated tokens per turn; default: 28, or 256")
    parser.add_argument("--budget", type=int, help="tokens per micro-batch; default: 8192, or 16384")
    parser.add_argument("--vision-budget", type=int, help="visual tokens per pass of the tower; default: 4096, or 8192")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=[])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--reference", action="store_true", help="with a reference policy, as with a KL coefficient")
    parser.add_argument("--frozen-vision", action="store_true")
    parser.add_argument(
        "--lora", type=int, default=0, help="rank of adapters in place of the weights, which are frozen"
    )
    parser.add_argument("--profile", action="store_true", help="on a GPU: one more update, its kernels by class")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON, last")
    chosen = parser.parse_args()
    is_shape = chosen.model is not None
    for name, tiny, shape in (
        ("episodes", 256, 64),
        ("group_sizes", [8], [8, 16]),
        ("side", 224, 1008),
        ("words", 28, 256),
        ("budget", 8192, 16384),
        ("vision_budget", 4096, 8192),
        ("variants", ["ours"], list(VARIANTS)),
    ):
        if not getattr(chosen, name):
            setattr(chosen, name, shape if is_shape else tiny)
    return chosen


def start_rank(folder: Path, config: LearnerConfig, *, random: bool) -> LearnerRank:
    model = ModelConfig(
        path=str(folder),
        load="random" if random else "weights",
        dtype="bfloat16" if config.num_gpus else "float32",
    )
    rank = LearnerRank(
        config,
        model,
        rank=0,
        world_size=1,
        seed=0,
        temperature=1.0,
        weights=WeightsConfig(),
        transport="shared_memory",
    )
    rank.start(*rank.rendezvous())
    return rank


def plan(groups: Sequence[TrainingGroup], config: LearnerConfig, *, shares: bool, budget: int) -> RankPlan:
    """The plan of one rank; without sharing, every episode is computed from its first token."""
    separate = mock.patch(
        "learner.batches.family.shared_length", lambda rows: rows[0].num_tokens if len(rows) == 1 else 0
    )
    with contextlib.nullcontext() if shares else separate:
        (planned,) = plan_mini_batches(
            groups,
            prompts_per_mini_batch=len(groups),
            num_ranks=1,
            max_tokens_per_micro_batch=budget,
            max_tokens_per_vision_pass=config.max_tokens_per_vision_pass,
            in_rounds=learns_in_rounds(config),
        )
    return planned


def per_micro_batch(piece: PiecePlan, config: LearnerConfig) -> list[PiecePlan]:
    """A piece per micro-batch, so that the tower runs for each of them."""
    return [
        PiecePlan(
            micro_batches=(families,), vision_passes=split_views([families], config.max_tokens_per_vision_pass)[0]
        )
        for families in piece.micro_batches
    ]


def seconds(work: Callable[[], object], device: torch.device) -> float:
    wait(device)
    started = time.monotonic()
    work()
    wait(device)
    return time.monotonic() - started


def allocation_retries(config: LearnerConfig) -> int:
    """How often PyTorch had to give cached memory back to the device and ask again, which is slow."""
    return int(torch.cuda.memory_stats()["num_alloc_retries"]) if config.num_gpus else 0


def measure(
    rank: LearnerRank,
    groups: Sequence[TrainingGroup],
    config: LearnerConfig,
    chosen: argparse.Namespace,
    peak: float,
    *,
    shares: bool = True,
    tower_once: bool = True,
    room: int | None = None,
    fuses: bool = True,
) -> dict[str, float]:
    engine = rank._engine
    model: Any = engine.module.model
    recomputation = rank._trainer._recomputation
    planned = plan(groups, config, shares=shares, budget=chosen.budget)
    (piece,) = planned.mini_batches
    pieces = [piece] if tower_once else per_micro_batch(piece, config)
    images = images_of(planned, groups)
    if config.num_gpus:
        torch.cuda.reset_peak_memory_stats()

    def update() -> None:
        for each in pieces:
            rank.accumulate(each, images)
        rank.step()

    if config.num_gpus:
        allow_fusing(fuses)
    retries = allocation_retries(config)
    measured = recomputation._room if room is None else mock.Mock(return_value=room)
    with mock.patch.object(recomputation, "_room", measured):
        first_s = seconds(update, engine.device)
        rank._trainer.take_seconds()
        recomputation.num_tokens, recomputation.num_visual_tokens = [0, 0], [0, 0]
        update_s = statistics.median(seconds(update, engine.device) for _ in range(chosen.repeats))
        stages = {name: spent / chosen.repeats for name, spent in rank._trainer.take_seconds().items()}
        if chosen.profile:
            print(profiled(rank, update), flush=True)
    language_again, vision_again = (
        again / whole for again, whole in (recomputation.num_tokens, recomputation.num_visual_tokens)
    )
    num_tokens = sum(row.num_tokens for row in rows_of([planned]))
    needed, executed = update_flops(model, pieces, language_again=language_again, vision_again=vision_again)
    return {
        "update_s": update_s,
        "first_update_s": first_s,
        "tokens": num_tokens,
        "computed_tokens": round(planned.workload.computed_share * num_tokens),
        "micro_batches": len(piece.micro_batches),
        "vision_passes": sum(len(each.vision_passes) for each in pieces),
        "rounds": sum(len(each.rounds()) for each in pieces),
        "language_again": language_again,
        "vision_again": vision_again,
        "tokens_per_s": num_tokens / update_s,
        "peak_memory_gib": rank.peak_memory_bytes() / 2**30,
        "allocation_retries": allocation_retries(config) - retries,
        "needed_tflop": needed / 1e12,
        "executed_tflop": executed / 1e12,
        "mfu": needed / update_s / peak,
        "hardware_use": executed / update_s / peak,
        **stages,
    }


def profiled(rank: LearnerRank, update: Callable[[], object]) -> str:
    """Table of the kernels of one update."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        with staged(rank._engine), recorded(trace):
            update()
        return table(json.loads(trace.read_text()))


def compare(
    rank: LearnerRank, groups: Sequence[TrainingGroup], config: LearnerConfig, folder: Path, repeats: int
) -> dict[str, float]:
    """Ours and the plain loop in turn, on the CPU."""
    peer = PlainLoop(folder, config)
    planned = plan(groups, config, shares=True, budget=config.max_tokens_per_micro_batch)
    images = images_of(planned, groups)
    episodes: list[PlannedEpisode] = rows_of([planned])
    ours_s, peer_s = [], []
    for _ in range(repeats + 1):
        ours_s.append(seconds(lambda: rank.update(planned, images), rank._engine.device))
        peer_s.append(seconds(lambda: peer.update(episodes, images), rank._engine.device))
    ours, theirs = (statistics.median(each[1:]) for each in (ours_s, peer_s))
    return {"ours_s": ours, "plain_loop_s": theirs, "plain_loop_over_ours": theirs / ours}


def show(name: str, figures: dict[str, float]) -> None:
    print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()), flush=True)


def run(chosen: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    config = LearnerConfig(
        num_gpus=chosen.gpus,
        zero_stage=chosen.stage,
        prompts_per_mini_batch=chosen.episodes,
        max_tokens_per_micro_batch=chosen.budget,
        max_tokens_per_vision_pass=chosen.vision_budget,
        train_vision=not chosen.frozen_vision,
        lora=LoraConfig(rank=chosen.lora),
        kl_coefficient=1e-3 if chosen.reference or chosen.model is None else 0.0,
        gradient_checkpointing=chosen.model is not None,
        learning_rate=1e-6,
    )
    started = time.monotonic()
    rank = start_rank(folder, config, random=chosen.model is not None)
    print(f"started in {time.monotonic() - started:.1f} s", flush=True)
    device = rank._engine.device
    peak = matmul_peak(device, rank._engine.dtype, side=8192 if chosen.gpus else 1024)
    print(f"matrix products: {peak / 1e12:.3g} TFLOP/s", flush=True)
    found: dict[str, dict[str, float]] = {"peak": {"matmul_tflops": peak / 1e12}}
    drawn = {
        size: [
            make_group(
                seed,
                group_size=size,
                size=(chosen.side, chosen.side),
                num_words=chosen.words,
                vocab_size=400,
                spec=rank._policies.spec,
            )
            for seed in range(chosen.episodes // size)
        ]
        for size in chosen.group_sizes
    }
    for variant in chosen.variants:
        for size, groups in drawn.items():
            name = f"G={size} {variant}"
            try:
                found[name] = measure(rank, groups, config, chosen, peak, **VARIANTS[variant])
            except torch.OutOfMemoryError:
                print(f"{name}: out of memory; the measurement ends here", flush=True)
                return found
            show(name, found[name])
    if not chosen.gpus and not chosen.lora:  # the plain loop trains the weights
        groups = drawn[chosen.group_sizes[0]]
        found["against a plain loop"] = compare(rank, groups, config, folder, chosen.repeats)
        show("against a plain loop", found["against a plain loop"])
    return found


def main() -> None:
    chosen = parse()
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.model
        if folder is None:
            folder = Path(temporary)
            save_model(folder, small_model(width=128, vision_width=96, layers=4, vocab_size=448))
        found = run(chosen, folder)
    if chosen.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
