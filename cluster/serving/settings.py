"""Finds the settings of a policy that is asked or served: those it was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from actors.prompts import load_prompt_style
from actors.tools.registry import toolbox_of
from cluster.folders import CONFIG
from cluster.hub import fetch_named
from cluster.policies import find_policy, materialize
from cluster.preflight.checks import raise_all
from cluster.preflight.model_files import model_folder_problems
from cluster.serving.card import SETTINGS
from cluster.shell import warn_user
from configs.load import load_config, load_saved
from configs.paths import resolve_paths
from configs.schema import Config


def policy_config(policy: Path | None, config: str | None, overrides: Sequence[str]) -> tuple[Config, str]:
    """The settings of a policy, and the name to serve it under.

    They are those of its run, or those in its export, with overrides on top. `config` names others, and is needed for
    a model folder that has none. Without a policy it is `model.path` of the config, which may name one of the hub.

    Raises:
        ValueError, RunError, CheckpointError, DataError: there is no such policy, or its settings are invalid.
    """
    source = find_policy(policy.expanduser()) if policy else None
    folder = materialize(source).absolute() if source else None
    chosen = [*overrides, *([f"model.path={folder}", "model.load=weights"] if folder else [])]
    if config is None and source and source.run:
        loaded = load_saved(source.run / CONFIG, chosen)[0]
    elif config is None and folder and (folder / SETTINGS).is_file():
        saved = load_config(str(folder / SETTINGS)).model.prompt
        loaded = load_config(str(folder / SETTINGS), [f"model.prompt={folder / saved}", *chosen])
    else:
        loaded = load_config(config, chosen)
    resolved = fetch_named(resolve_paths(loaded), keys=("model.path",), say=warn_user)
    model = resolved.model
    flaws = model_folder_problems("model.path", model.path, needs_weights=model.load == "weights")
    raise_all([ValueError(flaw) for flaw in flaws])
    load_prompt_style(model.prompt).check(toolbox_of(resolved.rollout.tools))
    return resolved, (source.run.absolute().name if source and source.run else Path(model.path).name)


def serving_config(config: Config, *, max_running: int) -> Config:
    """The config of an engine that plays that many requests at a time: each counts as a group of its own."""
    rollout = replace(config.rollout, max_groups_in_flight=max_running, group_size=2)
    return replace(config, rollout=rollout, train=replace(config.train, min_scored=1))


def read_keys(file: Path) -> list[str]:
    """The API keys in a file, one a line; lines that start with # are not read.

    Raises:
        ValueError: it cannot be read, or has no key.
    """
    try:
        lines = [line.strip() for line in file.expanduser().read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--api-key-file {str(file)!r} cannot be read: {error}") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ValueError(f"--api-key-file {str(file)!r} has no key: write one per line")
    return keys
