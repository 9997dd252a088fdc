"""Saving a learner's state in tests as a run does: every rank its share, then the manifest."""

from __future__ import annotations

from learner.state.checkpoint import CheckpointFolder, write_json
from learner.state.share_files import complete_state


def save(checkpoints, ranks, *, step=1, **state):
    """Save the state of all ranks of a learner, one after the other; returns the checkpoint's name."""
    checkpoints = CheckpointFolder(checkpoints) if not isinstance(checkpoints, CheckpointFolder) else checkpoints
    folder = checkpoints.begin(step)
    for rank in ranks:
        rank.begin_save(checkpoints.url, folder, rank.snapshot().counters.optimizer_step)
    return seal(checkpoints, step, folder, [rank.finish_save(60) for rank in ranks], **state)


def seal(checkpoints, step, folder, shares, **state):
    files = complete_state(shares, checkpoints.storage, folder)
    files["state.json"] = write_json(checkpoints.storage, f"{folder}/state.json", {"step": step, **state})
    return checkpoints.seal(step, files)
