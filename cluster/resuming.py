"""What is checked about a run's checkpoints before anything is started."""

from __future__ import annotations

import contextlib

from actors.data.dataset import Dataset
from actors.errors import CheckpointError
from cluster.checkpoints import read_state
from cluster.folders import checkpoints_url
from cluster.identity import check_identity, identify
from configs.schema import Config
from learner.checkpoint import CheckpointFolder


def check_checkpoints(config: Config, *, resume: bool) -> None:
    """Reject a place that cannot be opened, on `resume` a checkpoint of another run, else a place in use.

    Raises:
        CheckpointError: as said.
    """
    checkpoints = CheckpointFolder(checkpoints_url(config))
    names = checkpoints.list()
    if not resume:
        if names:
            raise CheckpointError(
                f"{checkpoints.url} holds checkpoints of another run up to {names[-1]}: set run.name or "
                "train.checkpoint_dir, or remove them"
            )
        return
    for name in reversed(names):
        with contextlib.suppress(CheckpointError):  # damaged ones are skipped when the run is restored as well
            saved = read_state(checkpoints, name)["identity"]
            break
    else:
        return
    check_identity(saved, identify(config, Dataset.open(config.data.train)))
