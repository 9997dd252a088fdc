"""What is to be known of a family of models without its code: names, sizes, settings of its tiny member. Pure.

How a family computes is in `learner.families.architectures`; `learner.families.lookup` finds both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from learner.memory import ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyMember:
    """What the tiny model of the shapes task has of its family, beside `learner.tiny.model`."""

    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    """Settings of config.json."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFamily:
    """Models of one architecture."""

    model_type: str
    """In config.json."""
    architecture: str
    """The library's class, and vLLM's."""
    title: str
    processor: str
    """The library's class."""
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    """Of each channel, subtracted and divided by after scaling to 0 to 1."""
    renamed_prefixes: tuple[tuple[str, str], ...]
    """Of a parameter in memory, and in the files of a model, where these differ."""
    read_shape: Callable[[Mapping[str, Any]], ModelShape]
    """The shape in a config.json."""
    published: Mapping[str, Mapping[str, Any]]
    """config.json of published models by name, as far as memory and speed depend on it."""
    coordinates: Literal["absolute", "relative"]
    """Those in which the published models were taught to give boxes, as in `rollout.tools.coordinates`."""
    tiny: TinyMember

    def name_in_files(self, name: str) -> str:
        """Name of a parameter in the files of a model, from the one in memory; one of a file stays as it is."""
        for prefix, renamed in self.renamed_prefixes:
            if name.startswith(prefix):
                return renamed + name.removeprefix(prefix)
        return name
