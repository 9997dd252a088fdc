"""Finds a policy: in a run, in one of its checkpoints, or in a model folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from actors.errors import CheckpointError, RunError
from cluster.folders import CONFIG
from configs.load import load_saved
from configs.paths import resolve_paths
from learner.checkpoint import CHECKPOINT_NAME, find_flaw, newest_checkpoint

EXPORT = "export"
EXPORTS = "exports"
"""Exports of single checkpoints; `export` is the one of a finished run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySource:
    """Location of a policy."""

    model: Path | None
    """Hugging Face folder, if it exists already."""
    checkpoint: Path | None = None
    """Verified checkpoint to export from."""
    run: Path | None = None
    """The run it belongs to."""
    step: int | None = None


def find_policy(path: Path) -> PolicySource:
    """The policy of a run (its final export, or else its latest checkpoint), of a checkpoint, or of a model folder.

    Raises:
        CheckpointError: the given checkpoint fails verification.
        RunError: there is no policy.
    """
    if (path / CONFIG).is_file():
        return _policy_of_run(path)
    if match := CHECKPOINT_NAME.fullmatch(path.name):
        if flaw := find_flaw(path):
            raise CheckpointError(f"{path} fails verification: {flaw}")
        run, step = path.parent.parent, int(match[1])
        return PolicySource(model=None, checkpoint=path, run=run, step=step)
    if any(path.glob("*.safetensors")):
        return PolicySource(model=path)
    raise RunError(
        f"{path} holds no policy: give a run, RUN/checkpoints/step-N, or a Hugging Face folder with safetensors"
    )


def _policy_of_run(run: Path) -> PolicySource:
    found = newest_checkpoint(run / "checkpoints")
    newest = None if found.path is None else int(found.path.name.removeprefix("step-"))
    summary = run / "summary.json"
    ended_at = json.loads(summary.read_text())["steps"] if summary.is_file() else None
    if ended_at is not None and any((run / EXPORT).glob("*.safetensors")) and (newest is None or ended_at >= newest):
        return PolicySource(model=run / EXPORT, run=run, step=ended_at)
    if newest is None:
        raise RunError(f"{run} has neither finished nor written a valid checkpoint")
    return PolicySource(model=None, checkpoint=found.path, run=run, step=newest)


def materialize(source: PolicySource, out: Path | None = None) -> Path:
    """The policy as a Hugging Face folder; a checkpoint is exported to `out`, or else into the run folder.

    Raises:
        CheckpointError: the checkpoint has no learner state.
    """
    if source.model is not None and out is None:
        return source.model
    from learner.export import export_checkpoint  # imports PyTorch

    if source.checkpoint is None:
        raise RunError(f"{source.model} is exported already: copy the folder")
    assert source.run is not None
    config = resolve_paths(load_saved(source.run / CONFIG)[0])
    target = out or source.run / EXPORTS / source.checkpoint.name
    if out is None and any(target.glob("*.safetensors")):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    export_checkpoint(source.checkpoint, target, model=Path(config.model.path), dtype=config.model.dtype)
    return target
