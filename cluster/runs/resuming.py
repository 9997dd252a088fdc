"""Where a run starts: which checkpoint, whether it is of this run, and what the records before it say."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from actors.data.dataset import Dataset, PromptCursor, SkipLedger
from actors.errors import CheckpointError, RunError
from cluster.checkpoints import read_state
from cluster.display import Display
from cluster.folders import CONFIG, checkpoints_url
from cluster.identity import check_identity, identify
from cluster.records.reading import read_skips
from cluster.records.repair import repair_records
from cluster.runs.attempts import set_aside
from configs.schema import Config
from learner.state.checkpoint import CheckpointFolder


def check_resumption(config: Config, *, warn: Callable[[str], None]) -> None:
    """Reject a checkpoint of another run before anything is started. Changes nothing: the lease is not held yet.

    Raises:
        CheckpointError: the run's identity differs from this command's, or the checkpoints cannot be reached.
    """
    checkpoints = CheckpointFolder(checkpoints_url(config))
    for name in reversed(checkpoints.list()):
        with contextlib.suppress(CheckpointError):  # damaged ones are skipped here as well
            saved = read_state(checkpoints, name)["identity"]
            break
    else:
        return
    if warning := check_identity(saved, identify(config, Dataset.open(config.data.train, config.data.columns))):
        warn(warning)


def find_start(config: Config, *, resume: bool, restart: bool, display: Display) -> bool:
    """Whether there is a checkpoint to resume from; else the run starts from step 0, with earlier records set aside.

    Raises:
        CheckpointError: all checkpoints are damaged, those of another run lie where this one would write, or it cannot
            write there.
        RunError: a new run would overwrite another one.
    """
    folder, checkpoints = Path(config.run.dir) / config.run.name, CheckpointFolder(checkpoints_url(config))
    if resume:
        for name in checkpoints.discard_incomplete():
            display.warn(f"{name} is incomplete: removed")
        names = checkpoints.list()
        if any(checkpoints.find_flaw(name, reads_tensors=False) is None for name in names):
            return True
        if names:
            reason = f"{names[-1]}: {checkpoints.find_flaw(names[-1], reads_tensors=False)}"
            raise CheckpointError(
                f"{folder} has no valid checkpoint ({reason}): give --restart to start it from step 0"
            )
        display.say("no checkpoint was written yet: this run starts over")
    elif not restart and (folder / CONFIG).exists():
        raise RunError(f"{folder} has a run already: give --resume or --restart, or set run.name")
    if aside := set_aside(folder):
        display.say(f"earlier records are in {aside}")
    if config.train.checkpoint_dir:
        if names := checkpoints.list():
            raise CheckpointError(
                f"{checkpoints.url} holds checkpoints of an earlier run, up to {names[-1]}: remove them, or set "
                "run.name or train.checkpoint_dir"
            )
        checkpoints.check_writable()
    return False


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
