"""Floating-point operations of an update, counted from shapes, and the peak that they are held against.

A multiplication and an addition are two operations. Matrix products and attention are counted; attention is causal in
the language model. The backward pass counts as two forward passes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch

from learner.batches.family import Family
from learner.batches.plan import PiecePlan
from learner.families.lookup import read_shape


def matmul_peak(device: torch.device, dtype: torch.dtype, *, side: int, repeats: int = 20) -> float:
    """Operations per second of a square matrix product, the best of `repeats`."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        wait(device)
        started = time.perf_counter()
        torch.matmul(a, b)
        wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def update_flops(
    model: Any, pieces: Iterable[PiecePlan], *, language_again: float, vision_again: float
) -> tuple[float, float]:
    """(operations that the gradients need, operations that are executed, with these shares of forward passes repeated).

    The output layer always computes its logits again.
    """
    needed = executed = 0.0
    for piece in pieces:
        families = [family for each in piece.micro_batches for family in each]
        language, head, vision = _language(model, families), _head(model, families), _vision(model, families)
        needed += 3 * (language + head + vision)
        executed += (3 + language_again) * language + 4 * head + (3 + vision_again) * vision
    return needed, executed


def _language(model: Any, families: Iterable[Family]) -> float:
    layers, width = model.model.language_model.layers, read_shape(model.config.to_dict()).text.query_width
    weights = sum(p.numel() for layer in layers for p in layer.parameters() if p.ndim == 2)
    last_mlp = sum(p.numel() for p in layers[-1].mlp.parameters() if p.ndim == 2)
    total = 0.0
    for family in families:
        shared = family.num_shared
        pairs = shared**2 / 2 + sum(length * (shared + length / 2) for length in family.remainders)
        total += 2 * weights * family.num_tokens + 4 * width * len(layers) * pairs
        # Behind the attention of the last layer only what predicts a token is computed.
        total -= 2 * last_mlp * (family.num_tokens - _num_read(family))
    return total


def _num_read(family: Family) -> int:
    """Tokens of a family that predict another."""
    before = [row.generated_at - 1 for row in family.rows]
    shared = {int(at) for each in before for at in each if at < family.num_shared}
    return len(shared) + sum(int((each >= family.num_shared).sum()) for each in before)


def _head(model: Any, families: Iterable[Family]) -> float:
    scored = sum(len(row.generated_at) for family in families for row in family.rows)
    return 2.0 * model.lm_head.weight.numel() * scored


def _vision(model: Any, families: Iterable[Family]) -> float:
    config, tower = model.config.vision_config, model.model.visual
    unit = config.spatial_merge_size**2
    sizes = {key: size for family in families for key, size in family.visual_tokens.items()}.values()
    per_patch = sum(p.numel() for block in tower.blocks for p in block.parameters() if p.ndim == 2)
    per_patch += tower.patch_embed.proj.weight.numel()
    mergers = [tower.merger, *getattr(tower, "deepstack_merger_list", ())]
    per_token = sum(p.numel() for merger in mergers for p in merger.parameters() if p.ndim == 2)
    shape, total = read_shape(model.config.to_dict()), 0.0
    for size in sizes:
        patches = unit * size
        inside = min(shape.window_patches, patches)
        seen = config.depth * (shape.whole_share * patches + (1 - shape.whole_share) * inside)
        total += 2 * (per_patch * patches + per_token * size) + 4 * config.hidden_size * seen * patches
    return total
