"""What one update of the learner costs, against the same update by the library's plain forward pass.

    python -m tests.bench.learner_step                                   # the tiny shape on the CPU, 256 episodes
    python -m tests.bench.learner_step --shape 3b --gpus 1 --groups 8    # random weights of the 3B shape on a GPU

Both sides see the same episodes with a reference pass, in alternating order; the medians and their ratio are printed,
and one JSON object as the last line. The peer runs on the CPU alone: full logits, every picture once per episode,
the library's vision tower and position loop, plain AdamW.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

from configs.schema import LearnerConfig, ModelConfig, WeightsConfig
from learner.batch import MicroBatchPlan, RankPlan, padded_tokens, plan_mini_batches
from learner.collate import cut_views
from learner.loss import LossInputs, grpo_loss
from learner.vision import grid_of, patchify
from learner.worker import LearnerRank
from tests.bench.model_shape import write_shape
from tests.learner.builders import (
    FORBIDDEN_IDS,
    IMAGE_ID,
    SPEC,
    collated,
    images_of,
    make_group,
    save_model,
    small_model,
)

LIBRARY_ATTENTION = qwen.Qwen2_5_VLVisionAttention.forward


def write_folder(folder: Path, shape: str) -> None:
    if shape == "3b":
        write_shape("3b", folder)
    else:
        save_model(folder, small_model(width=128, vision_width=96, layers=4, vocab_size=448))


class Peer:
    """One optimizer step as a plain training script writes it."""

    def __init__(self, folder: Path, config: LearnerConfig) -> None:
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, attn_implementation="sdpa")
        self.reference = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, attn_implementation="sdpa")
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.learning_rate)
        self.config = config

    def update(self, plan: RankPlan, images: list[object]) -> None:
        patched, qwen.Qwen2_5_VLVisionAttention.forward = (
            qwen.Qwen2_5_VLVisionAttention.forward,
            LIBRARY_ATTENTION,
        )
        for rows in plan.mini_batches[0]:
            batch = collated(rows, images)
            logprobs, entropies = self.score(self.model, rows, batch, images)
            with torch.no_grad():
                reference = self.score(self.reference, rows, batch, images)[0]
            given = LossInputs(
                logprobs_N=logprobs,
                entropy_N=entropies,
                sampler_logprobs_N=batch.sampler_logprobs_N,
                proximal_logprobs_N=batch.sampler_logprobs_N,
                reference_logprobs_N=reference,
                advantages_N=batch.advantages_N,
                weights_N=batch.weights_N,
            )
            coefficients = {"kl_coefficient": 1e-3, "entropy_coefficient": 1e-3}
            clipping = {"clip_low": 0.2, "clip_high": 0.2, "importance_sampling_cap": 2.0}
            grpo_loss(given, **clipping, **coefficients).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        qwen.Qwen2_5_VLVisionAttention.forward = patched

    def score(self, model, rows: MicroBatchPlan, batch, images):
        distinct = cut_views(rows, images)
        views = [distinct[row.image, view] for row in rows for view in row.views]
        lengths = torch.tensor([row.num_tokens for row in rows])
        width = batch.token_ids_BT.shape[1]
        logits = model(
            input_ids=batch.token_ids_BT,
            attention_mask=(torch.arange(width) < lengths[:, None]).long(),
            mm_token_type_ids=(batch.token_ids_BT == IMAGE_ID).int(),
            pixel_values=torch.cat([patchify(torch.from_numpy(view[None]), SPEC) for view in views]),
            image_grid_thw=torch.tensor([grid_of(view, SPEC) for view in views]),
        ).logits
        logits[..., list(FORBIDDEN_IDS)] = -1e30
        table = torch.log_softmax(logits.float(), dim=-1).flatten(0, 1)[batch.predicted_from_N]
        return table.gather(1, batch.target_ids_N[:, None]).squeeze(1), -(table.exp() * table).sum(-1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=("tiny", "3b"), default="tiny")
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--stage", type=int, default=1)
    parser.add_argument("--groups", type=int, default=32)
    parser.add_argument("--side", type=int, default=224, help="pixels of the full view's side")
    parser.add_argument("--words", type=int, default=28, help="most generated tokens per turn")
    parser.add_argument("--budget", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-reference", action="store_true")
    return parser.parse_args()


def learner_config(chosen: argparse.Namespace) -> LearnerConfig:
    return LearnerConfig(
        num_gpus=chosen.gpus,
        zero_stage=chosen.stage,
        prompts_per_mini_batch=chosen.groups,
        max_tokens_per_micro_batch=chosen.budget,
        kl_coefficient=0.0 if chosen.no_reference else 1e-3,
        gradient_checkpointing=chosen.shape == "3b",
        learning_rate=1e-6,
    )


def main() -> None:
    chosen = parse()
    groups = [
        make_group(seed, group_size=8, size=(chosen.side, chosen.side), num_words=chosen.words, vocab_size=448)
        for seed in range(chosen.groups)
    ]
    config = learner_config(chosen)
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder), chosen.shape)
        model = ModelConfig(
            path=folder,
            load="random" if chosen.shape == "3b" else "weights",
            dtype="bfloat16" if chosen.gpus else "float32",
        )
        started = time.monotonic()
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
        start_s = time.monotonic() - started
        peer = None if chosen.gpus else Peer(Path(folder), config)
    (plan,) = plan_mini_batches(
        groups,
        prompts_per_mini_batch=chosen.groups,
        num_ranks=1,
        max_tokens_per_micro_batch=chosen.budget,
    )
    images = images_of(plan, groups)
    ours_s, peer_s, report = [], [], None
    for _ in range(chosen.repeats + 1):
        report = rank.update(plan, images)
        ours_s.append(report.seconds)
        if peer is not None:
            started = time.monotonic()
            peer.update(plan, images)
            peer_s.append(time.monotonic() - started)
    # The first round of each side warms caches and memory up.
    ours = statistics.median(ours_s[1:])
    num_tokens = sum(row.num_tokens for rows in plan.mini_batches[0] for row in rows)
    figures = {
        "start_s": round(start_s, 2),
        "episodes": sum(map(len, plan.mini_batches[0])),
        "micro_batches": len(plan.mini_batches[0]),
        "tokens": num_tokens,
        "padded_per_token": round(sum(map(padded_tokens, plan.mini_batches[0])) / num_tokens, 3),
        "update_s": round(ours, 3),
        "tokens_per_s": round(num_tokens / ours),
        "peak_memory_gib": round(rank.peak_memory_bytes() / 2**30, 2),
        **{name: round(value, 3) for name, value in report.metrics.items() if name.startswith("time/")},
    }
    if peer_s:
        figures["peer_update_s"] = round(statistics.median(peer_s[1:]), 3)
        figures["peer_over_ours"] = round(figures["peer_update_s"] / ours, 2)
    for name, value in figures.items():
        print(f"{name:32} {value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
