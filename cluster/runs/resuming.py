"""Where a run starts: which checkpoint, whether it is of this run, and what the records before it say."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from actors.data.dataset import Dataset, PromptCursor
from actors.errors import CheckpointError, RunError
from cluster.checkpoints import read_state
from cluster.display import Display
from cluster.folders import CONFIG, checkpoints_url
from cluster.identity import check_identity, identify
from cluster.records.repair import repair_records
from cluster.runs.attempts import set_aside
from configs.schema import Config
from learner.checkpoint import CheckpointFolder


def check_checkpoints(
    config: Config, *, resume: bool, restart: bool = False, warn: Callable[[str], None] = lambda _: None
) -> None:
    """Reject, before anything is started, checkpoints of another run. Changes nothing: the lease is not held yet.

    Raises:
        CheckpointError: the place of the checkpoints cannot be opened; with `resume`, the run's identity differs from
            this command's; without, `train.checkpoint_dir` holds checkpoints of this name.
    """
    checkpoints = CheckpointFolder(checkpoints_url(config))
    names = checkpoints.list()
    if not resume:
        if names and config.train.checkpoint_dir:  # those in the run's own folder are set aside with it
            raise CheckpointError(
                f"{checkpoints.url} holds checkpoints up to {names[-1]}: "
                + ("remove them, or set run.name" if restart else "give --resume, remove them, or set run.name")
            )
        return
    for name in reversed(names):
        with contextlib.suppress(CheckpointError):  # damaged ones are skipped when the run is restored as well
            saved = read_state(checkpoints, name)["identity"]
            break
    else:
        return
    if warning := check_identity(saved, identify(config, Dataset.open(config.data.train))):
        warn(warning)


def find_start(folder: Path, checkpoints: CheckpointFolder, *, resume: bool, restart: bool, display: Display) -> bool:
    """Whether the run continues from a checkpoint; if it starts from step 0, earlier records are set aside.

    Raises:
        RunError: a new run would overwrite another one.
    """
    if resume:
        if names := checkpoints.list():
            display.say(f"resuming; the newest checkpoint is {names[-1]}")
            return True
        display.say("no checkpoint was written yet: this run starts over")
    elif not restart and (folder / CONFIG).exists():
        raise RunError(f"{folder} has a run already: give --resume or --restart, or set run.name")
    if aside := set_aside(folder):
        display.say(f"earlier records are in {aside}")
    return False


def mend_records(folder: Path, config: Config, step: int, prompts: PromptCursor, display: Display) -> None:
    """Restore lost lines of a resumed run's records, or name them.

    Args:
        prompts: restored to this step.
    """
    if step:
        drawn = PromptCursor(dataset=config.data.train, num_rows=prompts.num_rows, seed=config.run.seed)
        for problem in repair_records(folder, step, [ref.uid for ref in drawn.take(prompts.num_taken)]):
            display.warn(problem)
