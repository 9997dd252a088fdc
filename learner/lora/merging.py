"""Weights with their adapters added, and the names of both.

PEFT moves the weight of a layer PATH to `PATH.base_layer.weight` [O, I], and puts `PATH.lora_A.default.weight` [R, I]
and `PATH.lora_B.default.weight` [O, R] beside it. What leaves the learner has the layer's own name, and the sum.

Legend: O outputs and I inputs of a layer, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

ADAPTER = "default"
"""Name of the only adapter of each layer."""
DOWN, UP = f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight"
BASE = ".base_layer."

ReadWhole = Callable[[Callable[[str], bool]], Iterable[tuple[str, Tensor]]]
"""Gives (name, whole parameter) of those whose name is wanted; each is valid until the next one is taken."""


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name is part of an adapter."""
    return name.endswith((DOWN, UP))


def name_of_weight(name: str) -> str:
    """Name that a parameter has in a model without adapters."""
    return name.replace(BASE, ".")


def merged(read: ReadWhole, scale: float) -> Iterator[tuple[str, Tensor]]:
    """(name without adapters, weight) of each parameter, in order: where there is an adapter, a new tensor.

    No parameter is changed, and of what is new the caller alone decides how much exists at a time. The adapters come
    first: where parameters are gathered, those of a layer may not be there at the same time as its weight.
    """
    adapters = {name: parameter.clone() for name, parameter in read(is_adapter)}
    weights = ((name_of_weight(name), weight) for name, weight in read(lambda name: not is_adapter(name)))
    yield from with_adapters(weights, adapters, scale)


def with_adapters(
    weights: Iterable[tuple[str, Tensor]], adapters: Mapping[str, Tensor], scale: float
) -> Iterator[tuple[str, Tensor]]:
    """weight + scale * up @ down where there is an adapter, summed in float32 and rounded once.

    In bfloat16 a sum that differs from the weight by less than half of its last bit is the weight again: adapters that
    add less than the rounding of all weights does are mostly not heard. Rounding at random would let them through in
    the mean, with an error that is larger than what they add.

    Args:
        weights: with their names in a model without adapters.
        adapters: by their name.
    """
    for name, weight in weights:
        layer = name.removesuffix(".weight")
        if (down_RI := adapters.get(f"{layer}{DOWN}")) is not None:
            up_OR = adapters[f"{layer}{UP}"]
            weight = torch.addmm(weight.float(), up_OR.float(), down_RI.float(), alpha=scale).to(weight.dtype)
        yield name, weight
