"""What DeepSpeed 0.19.8 does under ZeRO-1 and 2 with the gradients of a pass and of a step, in fewer operations."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def speed_up_gradient_sums(optimizer: Any) -> None:
    """Leave out of an optimizer whose state is on the learner's device what only takes time.

    DeepSpeed makes a float32 copy of every gradient before it adds it to its sum. In a step it looks for values that
    are not finite and takes norms, one parameter after the other; the norm alone tells the same.
    """
    optimizer._add_to_grad_partition_buffer = _add
    optimizer.check_overflow = _leave_it_to_the_norm
    optimizer.get_grad_norm_direct = partial(_norm, optimizer)


def _add(total: Tensor | None, gradient: Tensor) -> None:
    if total is not None:
        total.add_(gradient)


def _leave_it_to_the_norm(partition_gradients: bool = True) -> None:
    """`step` has cleared `overflow`, and sets it if the norm is not finite."""


def _norm(optimizer: Any, gradients: Iterable[Tensor], parameters: object, norm_type: int = 2) -> Tensor:
    """Norm of the gradients of all ranks, in float64."""
    norms = torch._foreach_norm([gradient.detach() for gradient in gradients], norm_type, dtype=torch.float64)
    square = torch.stack(norms).square().sum()
    dist.all_reduce(square, group=optimizer.dp_process_group)
    return square.sqrt().float()
