"""Where a run starts: which checkpoint, whether it is of this run, and what the records before it say."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from actors.data.dataset import Dataset, PromptCursor, SkipLedger
from actors.errors import CheckpointError, RunError
from cluster.checkpoints import read_state
from cluster.display import Display
from cluster.folders import CONFIG
from cluster.identity import check_identity, identify
from cluster.records.reading import read_skips
from cluster.records.repair import repair_records
from cluster.runs.attempts import set_aside
from configs.schema import Config
from learner.checkpoint import list_checkpoints, newest_checkpoint

CHECKPOINTS = "checkpoints"


def check_resumption(config: Config, folder: Path, *, warn: Callable[[str], None]) -> None:
    """Reject a checkpoint of another run before anything is started. Changes nothing: the lease is not held yet.

    Raises:
        CheckpointError: the run's identity differs from this command's.
    """
    for checkpoint in reversed(_checkpoints(folder)):
        with contextlib.suppress(CheckpointError):  # damaged ones are skipped here as well
            saved = read_state(checkpoint)["identity"]
            break
    else:
        return
    if warning := check_identity(saved, identify(config, Dataset.open(config.data.train))):
        warn(warning)


def find_start(folder: Path, *, resume: bool, restart: bool, display: Display) -> Path | None:
    """The newest valid checkpoint; None where the run starts from step 0, with earlier records set aside.

    Raises:
        CheckpointError: all checkpoints are damaged.
        RunError: a new run would overwrite another one.
    """
    if resume:
        found = newest_checkpoint(folder / CHECKPOINTS)
        for reason in found.rejected:
            display.warn(reason)
        if found.path is not None:
            display.say(f"resuming from {found.path.name}")
            return found.path
        if _checkpoints(folder):
            raise CheckpointError(f"{folder} has no valid checkpoint: give --restart to start it from step 0")
        display.say("no checkpoint was written yet: this run starts over")
    elif not restart and (folder / CONFIG).exists():
        raise RunError(f"{folder} has a run already: give --resume or --restart, or set run.name")
    if aside := set_aside(folder):
        display.say(f"earlier records are in {aside}")
    return None


def recall(folder: Path, config: Config, step: int, prompts: PromptCursor, display: Display) -> SkipLedger:
    """Unusable rows that a resumed run has met so far; lost lines of its records are restored or named.

    Args:
        prompts: restored to this step.
    """
    skips = SkipLedger(max_skipped_fraction=config.data.max_skipped_fraction)
    if step:
        drawn = PromptCursor(dataset=config.data.train, num_rows=prompts.num_rows, seed=config.run.seed)
        for problem in repair_records(folder, step, [ref.uid for ref in drawn.take(prompts.num_taken)]):
            display.warn(problem)
        skips.num_usable, skips.skipped[:] = read_skips(folder, config.data.train, step)
    return skips


def _checkpoints(folder: Path) -> list[Path]:
    return list_checkpoints(folder / CHECKPOINTS) if (folder / CHECKPOINTS).is_dir() else []
