"""The supported families of models, and which one a model is of. Pure; `learner.families.architectures` computes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.config_json import read_config_json
from learner.families.family import ModelFamily
from learner.families.qwen2_5_vl import QWEN2_5_VL
from learner.families.qwen3_vl import QWEN3_VL
from learner.memory import ModelShape

FAMILIES: Mapping[str, ModelFamily] = {family.model_type: family for family in (QWEN2_5_VL, QWEN3_VL)}
"""By the `model_type` of config.json. Their models with experts (`qwen3_vl_moe`) are others, and not supported."""
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    name: config for family in FAMILIES.values() for name, config in family.published.items()
}
"""config.json of published models by name (`qwen3-vl-4b`), as far as memory and speed depend on it."""


def find_family(config: object, source: str) -> ModelFamily:
    """The family of a model by its config.json.

    Args:
        source: setting and value that the message names.

    Raises:
        ValueError: it is of none that is supported.
    """
    found = config.get("model_type") if isinstance(config, Mapping) else None
    family = FAMILIES.get(found) if isinstance(found, str) else None
    if family is None:
        known = ", ".join(f"{each.model_type} ({each.title})" for each in FAMILIES.values())
        raise ValueError(f"{source} is invalid: model_type must be one of {known}, not {found!r}")
    return family


def family_of_folder(folder: Path) -> ModelFamily:
    """The family of a model's folder.

    Raises:
        ValueError: it is of none that is supported.
    """
    return find_family(read_config_json(folder), f"model.path={str(folder)!r}")


def find_shape(config: object) -> ModelShape | None:
    """The shape in a config.json, as `read_shape`; None for a family that is not supported."""
    if not isinstance(config, Mapping) or str(config.get("model_type")) not in FAMILIES:
        return None
    return read_shape(config)


def read_shape(config: Mapping[str, Any]) -> ModelShape:
    """The shape in the config.json of a supported family, in either of its layouts.

    Raises:
        ValueError: it is of another family, or a number of it is missing, or is none.
    """
    family = find_family(config, "config.json")
    try:
        return family.read_shape(config)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        missing = f"has no {error}" if isinstance(error, KeyError) else f"has an invalid size ({error})"
        raise ValueError(f"config.json {missing}: give a model folder of the {family.title} family") from error
