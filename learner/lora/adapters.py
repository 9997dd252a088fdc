"""LoRA (Hu et al., arXiv 2106.09685): low-rank adapters beside frozen weights, made by PEFT.

Legend: T tokens, I inputs and O outputs of a layer, J either of them rounded up (`learner.layers`), R rank.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
import torch.nn.functional as F
from peft.tuners import lora
from torch import Tensor, nn

from configs.learner import LoraConfig
from learner.hf_files import write_shards
from learner.layers import NarrowLinear, WideLinear
from learner.lora.merging import ADAPTER

ATTENTION = ("self_attn", "attn")
"""Names of the attention in a layer of a language model, and in a block of a tower."""
POLICY = "model."
"""Prefix of the model's parameters in the policy."""
FOLDER, FILE = "adapter", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Of each name in PEFT's files."""


class AdaptedLinear(lora.Linear):  # type: ignore[misc]
    """A linear layer [T.., I or J] -> [T.., O or J] with its adapter.

    PEFT's own forward pass writes the adapter's outputs twice more, and knows no layers that are padded.
    """

    is_adapted = True
    """Switched off while the frozen model is to be heard alone."""

    def forward(self, input: Tensor) -> Tensor:
        rows = input.flatten(0, -2)
        output: Tensor = self.base_layer(rows)
        if self.is_adapted:
            down, up = self.lora_A[ADAPTER].weight, self.lora_B[ADAPTER].weight
            low_TR = F.linear(rows, _padded(down, 1, rows.shape[1]))
            # What a layer has put out is nobody else's, and not needed for its backward pass.
            output.addmm_(low_TR, _padded(up, 0, output.shape[1]).T, alpha=self.scaling[ADAPTER])
        return output.view(*input.shape[:-1], -1)


def _padded(weight: Tensor, dim: int, size: int) -> Tensor:
    missing = size - weight.shape[dim]
    return F.pad(weight, (0, missing) if dim else (0, 0, 0, missing)) if missing else weight


def add_adapters(model: Any, config: LoraConfig, *, with_vision: bool) -> None:
    """Freeze a model and put adapters beside its projections, those of the tower only `with_vision`.

    At first they add exactly nothing. Their draws are the CPU's, from the state of PyTorch's generator.
    """
    settings = adapter_settings(config, list(projections(model, config, with_vision=with_vision)))
    settings._register_custom_module(dict.fromkeys((nn.Linear, WideLinear, NarrowLinear), AdaptedLinear))
    peft.inject_adapter_in_model(settings, model, ADAPTER)


def adapter_settings(config: LoraConfig, names: list[str]) -> peft.LoraConfig:
    """PEFT's settings of an adapter beside the layers with these names."""
    return peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, lora_dropout=0.0, target_modules=names)


def projections(model: Any, config: LoraConfig, *, with_vision: bool) -> Iterator[str]:
    """Names of the linear layers inside the layers of the language model, and inside the blocks of the tower."""
    stacks = [model.model.language_model.layers, *([model.model.visual.blocks] if with_vision else [])]
    inside = {part for stack in stacks for part in stack.modules() if isinstance(part, nn.Linear)}
    for name, part in model.named_modules():
        if part in inside and (config.target == "all" or any(each in ATTENTION for each in name.split("."))):
            yield name


def give_inputs_gradients(model: Any, *, with_vision: bool) -> None:
    """Let what enters the first layers have a gradient, though only frozen weights have made it.

    DeepSpeed 0.19.8 takes a layer's gradients away under ZeRO-3 once that of its input is known. Without one it does so
    before they are there.
    """
    firsts = [model.model.language_model.embed_tokens, *([model.model.visual.patch_embed] if with_vision else [])]
    for first in firsts:
        first.register_forward_hook(_with_gradient)


def _with_gradient(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    return output.requires_grad_() if torch.is_grad_enabled() else output


def adapted_layers(module: nn.Module) -> list[AdaptedLinear]:
    """The layers of a module that have adapters."""
    return [part for part in module.modules() if isinstance(part, AdaptedLinear)]


def save_adapter(adapters: Mapping[str, Tensor], folder: Path, config: LoraConfig, *, base: str) -> None:
    """Write `adapter/` in the folder of exported weights; PEFT loads it beside the model `base`.

    Args:
        adapters: by their name in the policy.

    Raises:
        CheckpointError: it could not be written.
    """
    folder = folder / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    adapters = {name.removeprefix(POLICY): tensor for name, tensor in adapters.items()}
    layers = sorted({name.partition(".lora_")[0] for name in adapters})
    settings = adapter_settings(config, layers)
    settings.base_model_name_or_path, settings.inference_mode = base, True
    settings.save_pretrained(str(folder))
    named = ((f"{PREFIX}{name.replace(f'.{ADAPTER}.', '.')}", tensor) for name, tensor in adapters.items())
    (file,) = set(write_shards(named, folder, "adapter", shard_bytes=sys.maxsize).values())
    (folder / file).rename(folder / FILE)
