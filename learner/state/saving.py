"""A rank's state in host memory, to and from storage: the last copies of it, and the thread that writes one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from actors.errors import CheckpointError
from learner.engine import LearnerEngine
from learner.state.buffers import HostBuffers
from learner.state.rng import restore_rng, rng_states
from learner.state.share_files import SavedLearner, WrittenShare, write_share
from learner.state.snapshot import (
    Counters,
    Piece,
    ReadRows,
    RngStates,
    Share,
    ShareHeader,
    fill_from_shares,
    rng_for,
)
from learner.state.storage import open_storage
from learner.trainer import Trainer

NUM_KEPT = 2
"""Shares in memory: while the ranks take a new one, each still has the one before it."""

FillState = Callable[[NDArray[np.float32], Sequence[Piece]], tuple[Counters, RngStates]]
"""Fills the wanted pieces in rows [3, N]; returns the counters and this rank's random generators."""


class StateKeeper:
    """Copies, saves and restores the state of one rank.

    `begin_save` and `finish_save` may be called beside everything else, by another thread.
    """

    def __init__(self, engine: LearnerEngine, trainer: Trainer, *, rank: int) -> None:
        self._engine = engine
        self._trainer = trainer
        self._rank = rank
        self._buffers = HostBuffers(pinned=engine.device.type == "cuda")
        self._shares: tuple[Share, ...] = ()
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[WrittenShare] | None = None

    def snapshot(self) -> Share:
        """Copy this rank's part to host memory, between updates; without a step since the last one, it is that one."""
        counters = self._counters
        if self._shares and self._shares[-1].counters == counters:
            return self._shares[-1]
        self._shares = self._shares[1 - NUM_KEPT :]  # the new one may have the memory of the oldest
        partition = self._engine.partition
        held = partition.held()
        tensor_3N, state_3N = self._buffers.take(partition.num_elements(held))
        partition.copy_to(tensor_3N)
        if self._engine.device.type == "cuda":
            torch.cuda.synchronize()
        share = Share(
            rank=self._rank,
            counters=counters,
            shapes=self._engine.trained_shapes(),
            pieces=held,
            state_3N=state_3N,
            rng=rng_states(),
        )
        self._shares = (*self._shares, share)
        return share

    def begin_save(self, url: str, folder: str, optimizer_step: int) -> None:
        """Begin to write the newest share of this optimizer step into a folder of a storage.

        Raises:
            CheckpointError: there is none any more, or the last one is still being written.
        """
        if self._writing is not None and not self._writing.done():
            raise CheckpointError("the checkpoint before it is still being written")
        shares = self._shares
        found = [share for share in shares if share.counters.optimizer_step == optimizer_step]
        if not found:
            held = [share.counters.optimizer_step for share in shares]
            raise CheckpointError(f"the learner's state of version {optimizer_step} is not in memory, only of {held}")
        self._writing = self._writer.submit(_write, found[-1], url, folder)

    def finish_save(self, timeout_s: float) -> WrittenShare:
        """Wait until what was begun is written.

        Raises:
            CheckpointError: it could not be written, or not in time.
        """
        if self._writing is None:
            raise CheckpointError("the learner's ranks have changed since the save was begun")
        try:
            return self._writing.result(timeout=timeout_s)
        except TimeoutError as error:
            raise CheckpointError(f"rank {self._rank} has not written its part within {timeout_s:g} s") from error

    def restore(self, headers: Sequence[ShareHeader], read_rows: ReadRows) -> int:
        """Take over the state in the shares with these headers; returns the optimizer step. A collective.

        Reads only those that hold this rank's part.

        Raises:
            CheckpointError: shares are missing, of different steps or of another model. Then no rank has changed.
        """

        def fill(state_3N: NDArray[np.float32], wanted: Sequence[Piece]) -> tuple[Counters, RngStates]:
            counters = fill_from_shares(state_3N, wanted, headers, read_rows, self._engine.trained_shapes())
            return counters, rng_for(self._rank, headers)

        return self._take_over(fill)

    def load(self, url: str, folder: str) -> int:
        """As `restore`, from the folder of a checkpoint, of which each rank reads the files with its part alone.

        Raises:
            CheckpointError: it has no learner's state, is damaged, or of another model. Then no rank has changed.
        """

        def fill(state_3N: NDArray[np.float32], wanted: Sequence[Piece]) -> tuple[Counters, RngStates]:
            saved = SavedLearner.open(open_storage(url), folder)
            saved.fill(state_3N, wanted, self._engine.trained_shapes())
            return saved.counters, saved.rng(self._rank)

        return self._take_over(fill)

    def _take_over(self, fill: FillState) -> int:
        partition = self._engine.partition
        wanted = partition.wanted()
        tensor_3N, state_3N = self._buffers.take(partition.num_elements(wanted))
        tensor_3N.zero_()
        problem: CheckpointError | None = None
        try:
            counters, rng = fill(state_3N, wanted)
        except CheckpointError as error:
            problem = error
        self._agree(problem)
        self._shares = ()
        self._engine.load_state(tensor_3N, optimizer_step=counters.optimizer_step)
        self._trainer.num_skipped = counters.num_skipped
        self._trainer.num_skipped_in_a_row = counters.num_skipped_in_a_row
        restore_rng(rng)
        return self._engine.optimizer_step

    def _agree(self, problem: CheckpointError | None) -> None:
        """Raise the problem of this rank, or that another one has a problem. A collective."""
        num_failed = torch.tensor(float(problem is not None), device=self._engine.device)
        dist.all_reduce(num_failed)
        if problem is not None:
            raise problem
        if num_failed:
            raise CheckpointError(f"{int(num_failed)} other ranks could not read their part of the learner's state")

    @property
    def _counters(self) -> Counters:
        return Counters(
            optimizer_step=self._engine.optimizer_step,
            num_skipped=self._trainer.num_skipped,
            num_skipped_in_a_row=self._trainer.num_skipped_in_a_row,
        )


def _write(share: Share, url: str, folder: str) -> WrittenShare:
    return write_share(share, open_storage(url), folder)
