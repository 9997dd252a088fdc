"""Checkpoints of a run: learner state and data position, saved and restored together."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from actors.data.dataset import CursorState, PromptCursor
from actors.errors import CheckpointError
from cluster.identity import Identity, check_identity
from cluster.judging.watch import JudgeWatch
from learner.checkpoint import write_checkpoint
from learner.group import LearnerGroup

STATE = "state.json"


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The driver's part of a checkpoint: everything except the learner state.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        state: dict[str, Any] = json.loads((checkpoint / STATE).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{checkpoint / STATE} cannot be read: {error}") from error
    return state


class Checkpoints:
    """Writes and restores the state of one run (rules F and G of the reliability rules).

    Args:
        folder: holds one directory per checkpoint.
        keep: number of most recent checkpoints to keep.
        before_save: raises where this driver must not write, because another one has taken the run.
    """

    def __init__(
        self,
        folder: Path,
        *,
        identity: Identity,
        learner: LearnerGroup,
        prompts: PromptCursor,
        judge_watch: JudgeWatch,
        keep: int,
        before_save: Callable[[], None] = lambda: None,
    ) -> None:
        self._before_save = before_save
        self._folder = folder
        self._identity = identity
        self._learner = learner
        self._prompts = prompts
        self._judge_watch = judge_watch
        self._keep = keep

    async def restore(self, checkpoint: Path) -> int:
        """Restore weights, optimizer, data position and judging totals; returns the last finished step.

        Raises:
            CheckpointError: it belongs to another run, or cannot be read.
        """
        state: Mapping[str, Any] = read_state(checkpoint)
        check_identity(state["identity"], self._identity)
        await self._learner.load(checkpoint)
        self._prompts.restore(CursorState(**state["cursor"]))
        self._judge_watch.restore(state.get("judge", {}))
        step: int = state["step"]
        return step

    async def save(self, step: int, cursor: CursorState) -> None:
        """Write a checkpoint atomically.

        Raises:
            CheckpointError: it could not be written; older checkpoints are kept.
        """
        self._before_save()
        loop = asyncio.get_running_loop()
        state = {
            "step": step,
            "cursor": asdict(cursor),
            "identity": asdict(self._identity),
            "judge": self._judge_watch.totals(),
        }

        def write(folder: Path) -> None:
            asyncio.run_coroutine_threadsafe(self._learner.save(folder), loop).result()
            (folder / STATE).write_text(json.dumps(state, indent=1))

        await asyncio.to_thread(write_checkpoint, self._folder, step, write, self._keep)
