"""Fills a model with its weights, parameter by parameter.

Each rank reads or draws its own share of a sharded parameter, so that no rank ever holds a whole model and nothing is
sent between ranks.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn

from configs.seeds import derive_seed
from learner.families.lookup import family_of_folder

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


class Weights(Protocol):
    """Where weights come from."""

    def read(self, name: str, shape: tuple[int, ...], start: int, stop: int) -> Tensor:
        """Elements [stop - start] of a flattened parameter of this shape, by its name in memory."""


@torch.no_grad()
def fill(model: nn.Module, weights: Weights) -> None:
    """Set every parameter of a model, or this rank's share of it where it is sharded."""
    for name, parameter in model.named_parameters():
        share = getattr(parameter, "ds_tensor", None)
        if share is None:
            parameter.copy_(weights.read(name, tuple(parameter.shape), 0, parameter.numel()).view_as(parameter))
            continue
        sharded: Any = parameter
        start = share.numel() * sharded.ds_zero_partition_rank
        count = max(0, min(share.numel(), sharded.ds_numel - start))
        # The last rank's share may be longer than what is left of the parameter.
        share[count:].zero_()
        if count:
            share[:count].copy_(weights.read(name, tuple(sharded.ds_shape), start, start + count))


class RandomWeights:
    """Weights as a model is initialized: normal matrices, norms of one, biases of zero.

    The draw depends on seed, name, shape, dtype and device alone, not on ranks and shards.
    """

    def __init__(self, config: Any, *, seed: int, dtype: torch.dtype, device: torch.device) -> None:
        self._config, self._seed, self._dtype, self._device = config, seed, dtype, device

    def read(self, name: str, shape: tuple[int, ...], start: int, stop: int) -> Tensor:
        if len(shape) == 1:
            value = 0.0 if name.endswith("bias") else 1.0
            return torch.full((stop - start,), value, dtype=self._dtype, device=self._device)
        part = self._config.vision_config if ".visual." in name else self._config.text_config
        generator = torch.Generator(self._device).manual_seed(derive_seed(self._seed, "weights", name))
        whole = torch.empty(math.prod(shape), dtype=self._dtype, device=self._device)
        return whole.normal_(std=part.initializer_range, generator=generator)[start:stop]


class CheckpointWeights:
    """The safetensors files of a Hugging Face folder, under the names of the checkpoint or of the library in memory.

    Raises:
        ValueError: the folder has no weights.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._name_in_files = family_of_folder(folder).name_in_files
        if (folder / INDEX).is_file():
            files = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        else:
            files = [SINGLE]
        if missing := [file for file in files if not (folder / file).is_file()]:
            raise self._flaw(f"has no {missing[0]}")
        self._found: dict[str, tuple[Any, str]] = {}
        for file in files:
            opened: Any = safe_open(folder / file, framework="pt")
            self._found |= {self._name_in_files(key): (opened, key) for key in opened.keys()}  # noqa: SIM118 - no mapping

    def check_names(self, model: nn.Module) -> None:
        """Compare with a model's parameters.

        Raises:
            ValueError: a tensor is missing, or is one that the model does not have.
        """
        known = {self._name_in_files(name) for name, _ in model.named_parameters(remove_duplicate=False)}
        wanted = {self._name_in_files(name) for name, _ in model.named_parameters()}
        for what, names in (("lacks", wanted - self._found.keys()), ("has unexpected", self._found.keys() - known)):
            if names:
                others = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise self._flaw(f"{what} weights: {min(names)}{others}")

    def read(self, name: str, shape: tuple[int, ...], start: int, stop: int) -> Tensor:
        """As `Weights.read`; whole rows are read.

        Raises:
            ValueError: the tensor has another shape.
        """
        file, key = self._found[self._name_in_files(name)]
        stored = file.get_slice(key)
        if (found := tuple(stored.get_shape())) != shape:
            raise self._flaw(f"has {key} of shape {found}, the model's config.json says {shape}")
        width = math.prod(shape[1:])
        first = start // width
        rows: Tensor = stored[first : -(-stop // width)]
        return rows.reshape(-1)[start - first * width : stop - first * width]

    def _flaw(self, what: str) -> ValueError:
        return ValueError(f"model.path={str(self._folder)!r} {what}")
