"""Floating-point operations of an update, counted from shapes, and the peak that they are held against.

A multiplication and an addition are two operations. Matrix products and attention are counted; attention is causal in
the language model. The backward pass counts as two forward passes: a product for the inputs and one for the weights.
The second falls away for frozen weights, and both for a frozen vision tower.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
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
        once = language.total + head.total + vision.total
        needed += once
        executed += once + language_again * language.forward + head.forward + vision_again * vision.forward
    return needed, executed


@dataclass(frozen=True)
class Passes:
    """Operations of a forward pass, and of the backward pass that belongs to it."""

    forward: float = 0.0
    backward: float = 0.0

    @property
    def total(self) -> float:
        return self.forward + self.backward

    def __add__(self, other: Passes) -> Passes:
        return Passes(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: float) -> Passes:
        return Passes(self.forward * times, self.backward * times)


def products(weights: Iterable[torch.nn.Parameter]) -> Passes:
    """Of one token through these weights."""
    sizes = [(weight.numel(), 1 + weight.requires_grad) for weight in weights if weight.ndim > 1]
    return Passes(2.0 * sum(size for size, _ in sizes), 2.0 * sum(size * num for size, num in sizes))


def _attention(products_of_pairs: float) -> Passes:
    return Passes(products_of_pairs, 2 * products_of_pairs)


def _language(model: Any, families: Iterable[Family]) -> Passes:
    layers, width = model.model.language_model.layers, read_shape(model.config.to_dict()).text.query_width
    of_token, of_last_mlp = products(layers.parameters()), products(layers[-1].mlp.parameters())
    total = Passes()
    for family in families:
        shared = family.num_shared
        pairs = shared**2 / 2 + sum(length * (shared + length / 2) for length in family.remainders)
        total += of_token * family.num_tokens + _attention(4 * width * len(layers) * pairs)
        # Behind the attention of the last layer only what predicts a token is computed.
        total += of_last_mlp * (_num_read(family) - family.num_tokens)
    return total


def _num_read(family: Family) -> int:
    """Tokens of a family that predict another."""
    before = [row.generated_at - 1 for row in family.rows]
    shared = {int(at) for each in before for at in each if at < family.num_shared}
    return len(shared) + sum(int((each >= family.num_shared).sum()) for each in before)


def _head(model: Any, families: Iterable[Family]) -> Passes:
    scored = sum(len(row.generated_at) for family in families for row in family.rows)
    return products([model.lm_head.weight]) * scored


def _vision(model: Any, families: Iterable[Family]) -> Passes:
    config, tower = model.config.vision_config, model.model.visual
    unit = config.spatial_merge_size**2
    sizes = {key: size for family in families for key, size in family.visual_tokens.items()}.values()
    of_patch = products(tower.blocks.parameters()) + products([tower.patch_embed.proj.weight])
    mergers = [tower.merger, *getattr(tower, "deepstack_merger_list", ())]
    of_token = products(weight for merger in mergers for weight in merger.parameters())
    shape, total = read_shape(model.config.to_dict()), Passes()
    for size in sizes:
        patches = unit * size
        inside = min(shape.window_patches, patches)
        seen = config.depth * (shape.whole_share * patches + (1 - shape.whole_share) * inside)
        total += of_patch * patches + of_token * size + _attention(4 * config.hidden_size * seen * patches)
    is_trained = any(weight.requires_grad for weight in tower.parameters())
    return total if is_trained else Passes(total.forward)
