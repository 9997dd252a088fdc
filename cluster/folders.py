"""Chooses the folder of a run, and whether the command starts or resumes it.

    visionthink train                   a new run each time: tiny, tiny-2, tiny-3 …
    visionthink train run.name=X        that run: starts X, or resumes it where it stopped; nothing if it is complete
    … --no-resume                       a new run under the next free name: X-2
    … --resume                          resumes the newest of the name; an error if there is none
    … run.name=X --restart              X from step 0; what it had recorded is moved to X/attempts/N

So one fixed command, given again by a person, a job or a supervisor, brings a run to its end.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.errors import RunError
from cluster.identity import check_settings, fixed_settings
from configs.load import DEFAULT, load_config, load_saved
from configs.paths import resolve_paths
from configs.schema import Config

CONFIG = "config.yaml"
"""Written to a run folder once the run has started."""
SUMMARY = "summary.json"
"""Written to a run folder once the run has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenRun:
    """What a command is to do."""

    config: Config
    """With its folder, and absolute paths."""
    line: str
    """What is done, for people."""
    resumes: bool = False
    restarts: bool = False
    """Start from step 0 although the folder has records: they are set aside."""
    summary: dict[str, Any] | None = None
    """Of a run that is complete: there is nothing to do."""
    warnings: tuple[str, ...] = ()
    earlier: Config | None = None
    """What the run that is resumed was started with."""


def resolve_run(
    config: str, overrides: Sequence[str], *, resume: bool | None = None, restart: bool = False
) -> ChosenRun:
    """The run that a command means, by the rules above.

    A resumed run keeps its settings, with the given overrides on top; a config other than the default one counts in
    place of the settings that the run was started with.

    Args:
        resume: None: by name.

    Raises:
        RunError: nothing to resume.
        CheckpointError: a complete run was given other settings.
        ValueError: the settings are invalid.
    """
    settings = resolve_paths(load_config(config, overrides))
    is_named = any(override.startswith("run.name=") for override in overrides)
    folder = Path(settings.run.dir) / settings.run.name
    if restart:
        _check_restart(resume=resume, is_named=is_named)
        verb = "restarts" if (folder / CONFIG).is_file() else "starts"
        return ChosenRun(config=settings, line=f"{folder} {verb} from step 0", restarts=True)
    if resume is False or (resume is None and not is_named):
        name = _free_name(settings.run.name, runs_of(folder.parent, folder.name))
        run = dataclasses.replace(settings.run, name=name)
        return ChosenRun(
            config=dataclasses.replace(settings, run=run),
            line=f"{folder.with_name(name)} starts: a new run (run.name={name} resumes it)",
        )
    if resume is None and not (folder / CONFIG).is_file():
        return ChosenRun(config=settings, line=f"{folder} starts: a new run")
    folder = folder if is_named and (folder / CONFIG).is_file() else _newest_started(folder)
    return _resumed(folder, None if config == DEFAULT else settings, overrides)


def _check_restart(*, resume: bool | None, is_named: bool) -> None:
    if resume is not None:
        raise ValueError("--restart is invalid with --resume or --no-resume: give one of them")
    if not is_named:
        raise ValueError("--restart is invalid without run.name=NAME: name the run to restart")


def _resumed(folder: Path, given: Config | None, overrides: Sequence[str]) -> ChosenRun:
    saved, removed = load_saved(folder / CONFIG, () if given else overrides)
    config = given or resolve_paths(saved)
    # The folder may have been moved since.
    run = dataclasses.replace(config.run, dir=str(folder.parent), name=folder.name)
    config = dataclasses.replace(config, run=run)
    warnings = tuple(f"{folder / CONFIG} has {key}, which this version does not have: ignored" for key in removed)
    summary = read_summary(folder)
    if summary is None or _num_steps_of(summary) < config.train.num_steps:
        earlier = load_saved(folder / CONFIG)[0]
        return ChosenRun(config=config, line=f"{folder} resumes", resumes=True, warnings=warnings, earlier=earlier)
    check_settings(fixed_settings(load_saved(folder / CONFIG)[0]), fixed_settings(config))
    line = (
        f"{folder} is complete ({summary['steps']} steps): nothing to do; set train.num_steps above "
        f"{_num_steps_of(summary)} to go on, run.name to another name, or give --restart to repeat it"
    )
    return ChosenRun(config=config, line=line, summary=summary, warnings=warnings)


def _newest_started(folder: Path) -> Path:
    started = [path for path in runs_of(folder.parent, folder.name) if (path / CONFIG).is_file()]
    if not started:
        raise RunError(f"no run {folder.name!r} in {folder.parent}/ has started: start it without --resume")
    return started[-1]


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Summary of a run that has ended; None where it has not, or where the file is damaged."""
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return summary if isinstance(summary, dict) and isinstance(summary.get("steps"), int) else None


def _num_steps_of(summary: dict[str, Any]) -> int:
    """Steps that the run was to have; a run that stopped early for lack of signal has fewer."""
    return int(summary.get("num_steps", summary["steps"]))


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
