"""DeepSpeed's settings, derived from those of the run and from the sizes of the model's parts. Pure functions.

What DeepSpeed 0.19.8 does under ZeRO-3, as far as the settings depend on it:

- Every module has four hooks, run by Python once in the forward pass, once in the backward pass and once more where
  activations are recomputed. A module marked as a leaf has them for itself and its children together.
- From the third forward pass on, the order of modules is known. A module's hook then gathers the parameters that come
  after it, up to `prefetch_bucket_size` elements, unless `max_live_parameters` are already gathered. The order is
  forgotten if modules come in another order, so `learner.zero.gathering` keeps one for vision passes and one for
  micro-batches, each of which calls its modules once.
- The host waits for the oldest of three gathers, and of three reductions. Without `overlap_comm` these are on the
  stream of the computation, so that the host cannot run ahead of the device.
- Each backward pass reduces all gradients, whatever `grad_accum_dtype` says: it adds up shards alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from configs.learner import LearnerConfig
from learner.memory import LIVE_LAYERS, deepspeed_stage
from learner.zero.optimizer import adamw_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSizes:
    """Sizes of a model's parts, in elements."""

    layer_classes: tuple[str, ...]
    """Class names of the repeated layers; empty where the model names none."""
    layer: int
    """The largest repeated layer, or the largest parameter of a model without."""
    parameter: int
    """The largest parameter."""


def part_sizes(module: nn.Module) -> PartSizes:
    """Sizes of a model, sharded or not; its repeated layers are those that transformers never splits over devices."""
    names = {name for part in module.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    layers = [part for part in module.modules() if type(part).__name__ in names]
    largest = max(_num_elements(parameter) for parameter in module.parameters())
    return PartSizes(
        layer_classes=tuple(sorted({type(layer).__name__ for layer in layers})),
        layer=max((sum(map(_num_elements, layer.parameters())) for layer in layers), default=largest),
        parameter=largest,
    )


def _num_elements(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def learner_settings(config: LearnerConfig, dtype: torch.dtype, sizes: PartSizes | None = None) -> dict[str, Any]:
    """The DeepSpeed configuration of a learner; without sizes, as far as the construction of its model needs it."""
    stage = deepspeed_stage(config, in_bfloat16=dtype == torch.bfloat16)
    # Under stages 1 and 2 a stream of its own would hide one reduction per micro-batch, at most 2 % of it over NVLink,
    # for a second bucket of gradients.
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": False}
    if stage in (1, 2) and config.ranks.maximum == 1 and not config.offload_optimizer:
        # Alone it would copy every gradient twice more, to the owner of its share and back.
        zero["reduce_scatter"] = False
    if stage == 3:
        zero.update(_sharded_parameters(config, sizes))
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    settings: dict[str, Any] = {
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.max_grad_norm if config.zero_stage else 0.0,
        "zero_force_ds_cpu_optimizer": False,
        **_common(dtype, zero),
    }
    if dtype == torch.bfloat16:
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    if config.zero_stage:
        settings["optimizer"] = {"type": "AdamW", "params": {**adamw_settings(config), "torch_adam": True}}
    return settings


def reference_settings(config: LearnerConfig, dtype: torch.dtype, sizes: PartSizes | None = None) -> dict[str, Any]:
    """The DeepSpeed configuration of a reference policy: sharded parameters without an optimizer."""
    zero = {"stage": 3, **_sharded_parameters(config, sizes)}
    if config.offload_reference:
        zero["offload_param"] = {"device": "cpu", "pin_memory": config.num_gpus > 0}
    return _common(dtype, zero)


def _common(dtype: torch.dtype, zero: dict[str, Any]) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "steps_per_print": 2**31,
        "zero_optimization": zero,
        "bf16": {"enabled": dtype == torch.bfloat16},
    }


def _sharded_parameters(config: LearnerConfig, sizes: PartSizes | None) -> dict[str, Any]:
    """ZeRO-3's own settings."""
    zero: dict[str, Any] = {
        # Streams of their own for gathers and for reductions. A CPU has no streams.
        "overlap_comm": config.num_gpus > 0,
        # DeepSpeed's replacement of nn.functional.linear keeps no gathered weight for the backward pass. Recomputed
        # layers keep nothing anyway, and torch's own function fuses the bias.
        "memory_efficient_linear": not config.gradient_checkpointing,
        "stage3_param_persistence_threshold": config.param_persistence_threshold,
    }
    if sizes is None:
        return zero
    if sizes.layer_classes:
        # A layer is one gather and four hooks; its dozen parts would be as many, and the device would wait for Python.
        zero["leaf_module"] = {"classes": list(sizes.layer_classes)}
    return {
        **zero,
        # The next layer, while this one computes. A gather takes a few percent of that time over NVLink, so that
        # looking further ahead would only hold memory.
        "stage3_prefetch_bucket_size": sizes.layer,
        # The limit of looking ahead: room for the output layer, the largest parameter of all, beside some layers.
        "stage3_max_live_parameters": sizes.parameter + LIVE_LAYERS * sizes.layer,
        # What is not used within a layer's distance is gathered again: that is hidden, and holding is not free. The
        # output layer is held, whose backward pass follows its forward pass.
        "stage3_max_reuse_distance": sizes.layer,
        # Reductions of two layers at a time run beside the backward passes of the next two.
        "reduce_bucket_size": 2 * sizes.layer,
        "contiguous_gradients": True,
    }
