"""Chooses the folder of a new or resumed run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from actors.errors import RunError
from configs.load import load_config
from configs.paths import resolve_paths
from configs.schema import Config

CONFIG = "config.yaml"
"""Written to a run folder once the run has started."""


def resolve_run(config: str, overrides: Sequence[str], *, resume: bool) -> Config:
    """The config of a run with its folder: the next free one, or on `resume` the newest existing one.

    A resumed run keeps its settings, with the given overrides on top. `run.name=` selects a folder by its exact name if
    it exists.

    Raises:
        RunError: nothing to resume.
    """
    settings = resolve_paths(load_config(config, overrides))
    existing = runs_of(Path(settings.run.dir), settings.run.name)
    if not resume:
        name = _free_name(settings.run.name, existing)
        return dataclasses.replace(settings, run=dataclasses.replace(settings.run, name=name))
    named = [path for path in existing if f"run.name={path.name}" in overrides]
    started = [path for path in named or existing if (path / CONFIG).is_file()]
    if not started:
        raise RunError(f"no run {settings.run.name!r} in {settings.run.dir}/ has started: start it without --resume")
    folder = started[-1]
    saved = resolve_paths(load_config(str(folder / CONFIG), overrides))
    # The folder may have been moved since.
    return dataclasses.replace(saved, run=dataclasses.replace(saved.run, dir=str(folder.parent), name=folder.name))


def checkpoints_url(config: Config) -> str:
    """Where the checkpoints of a run lie: a path or a URL. Its paths are resolved."""
    if config.train.checkpoint_dir:
        return f"{config.train.checkpoint_dir.rstrip('/')}/{config.run.name}"
    return str(Path(config.run.dir) / config.run.name / "checkpoints")


def runs_of(folder: Path, name: str) -> list[Path]:
    """Folders NAME, NAME-2, NAME-3 … that exist, oldest first."""
    numbered = {}
    for path in folder.glob(f"{name}*"):
        tail = path.name.removeprefix(name)
        if path.is_dir() and tail == "":
            numbered[1] = path
        elif path.is_dir() and tail.startswith("-") and tail[1:].isdigit():
            numbered[int(tail[1:])] = path
    return [numbered[number] for number in sorted(numbered)]


def _free_name(name: str, existing: Sequence[Path]) -> str:
    if not existing:
        return name
    last = existing[-1].name.removeprefix(name)
    return f"{name}-{int(last[1:]) + 1 if last else 2}"
