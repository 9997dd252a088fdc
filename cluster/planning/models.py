"""The policy's config.json: from its folder, or the published numbers of a model that is not on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.config_json import read_config_json
from configs.paths import find_folder
from learner.families.lookup import PUBLISHED, find_family


def find_model(path: str) -> Mapping[str, Any]:
    """config.json of a model folder, or of a published model that the path names.

    Raises:
        ValueError: neither, or of a family that is not supported.
    """
    folder = Path(find_folder(path, Path.cwd()))
    try:
        model = read_config_json(folder)
    except OSError:
        name = path.lower().replace("_", "-")
        published = next((size for size in PUBLISHED if size in name), None)
        if published is None:
            raise ValueError(
                f"model.path={path!r} is not on this machine, and its name is none of {', '.join(PUBLISHED)}: give a "
                f"folder with config.json (its weights are not needed)"
            ) from None
        return PUBLISHED[published]
    find_family(model, f"model.path={path!r}")
    return model
