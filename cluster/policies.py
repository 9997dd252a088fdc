"""Where a policy lies: in a run, in one of its checkpoints, or in a model folder of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from actors.errors import CheckpointError, RunError
from cluster.folders import CONFIG
from configs.load import load_config
from configs.paths import resolve_paths
from learner.checkpoint import CHECKPOINT_NAME, find_flaw, newest_checkpoint

EXPORT = "export"
EXPORTS = "exports"
"""Policies of single checkpoints, next to `export`, the one that a finished run leaves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySource:
    """A policy that was found."""

    model: Path | None
    """Hugging Face folder, where there is one already."""
    checkpoint: Path | None = None
    """Verified checkpoint to make one from."""
    run: Path | None = None
    """The run that it comes from."""
    step: int | None = None


def find_policy(path: Path) -> PolicySource:
    """The policy of a run (as it ended, else its newest checkpoint), of one checkpoint, or a model folder.

    Raises:
        CheckpointError: the checkpoint named does not verify.
        RunError: there is no policy.
    """
    if (path / CONFIG).is_file():
        return _policy_of_run(path)
    if match := CHECKPOINT_NAME.fullmatch(path.name):
        if flaw := find_flaw(path):
            raise CheckpointError(f"{path} does not verify: {flaw}")
        run, step = path.parent.parent, int(match[1])
        return PolicySource(model=None, checkpoint=path, run=run, step=step)
    if any(path.glob("*.safetensors")):
        return PolicySource(model=path)
    raise RunError(
        f"{path} holds no policy: name a run, RUN/checkpoints/step-N, or a Hugging Face folder with safetensors"
    )


def _policy_of_run(run: Path) -> PolicySource:
    found = newest_checkpoint(run / "checkpoints")
    newest = None if found.path is None else int(found.path.name.removeprefix("step-"))
    summary = run / "summary.json"
    ended_at = json.loads(summary.read_text())["steps"] if summary.is_file() else None
    if ended_at is not None and any((run / EXPORT).glob("*.safetensors")) and (newest is None or ended_at >= newest):
        return PolicySource(model=run / EXPORT, run=run, step=ended_at)
    if newest is None:
        raise RunError(f"{run} has neither finished nor written a checkpoint that verifies")
    return PolicySource(model=None, checkpoint=found.path, run=run, step=newest)


def materialize(source: PolicySource, out: Path | None = None) -> Path:
    """The policy as a Hugging Face folder: exported now where it lies in a checkpoint, to `out` or beside the run.

    Raises:
        CheckpointError: the checkpoint holds no learner's state.
    """
    if source.model is not None and out is None:
        return source.model
    from learner.export import export_checkpoint  # imports PyTorch

    if source.checkpoint is None:
        raise RunError(f"{source.model} is exported already: copy the folder")
    assert source.run is not None
    config = resolve_paths(load_config(str(source.run / CONFIG)))
    target = out or source.run / EXPORTS / source.checkpoint.name
    if out is None and any(target.glob("*.safetensors")):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    export_checkpoint(source.checkpoint, target, model=Path(config.model.path), dtype=config.model.dtype)
    return target
