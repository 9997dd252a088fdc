"""Writes the records of a run: metrics.jsonl, TensorBoard events, ledger.jsonl, episodes/ and heldout/*.parquet.

All of it is keyed by step. A resumed run cuts everything after the step it resumes from, so that each file tells one
story: `ledger.jsonl` lists every sample that a step consumed, in the cursor's order, once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cluster.heldout import HeldoutPlay
from cluster.records.episodes import rows_of_evaluation, rows_of_step, write_episodes
from cluster.records.files import append_line, stop_on_full_disk, write_atomically
from cluster.records.trackers import TensorBoard, Trackers
from cluster.step import StepBatch

STEP_FILE = re.compile(r"step-(\d+)\.parquet", re.ASCII)


class Recorder:
    """Writes the files of one run.

    Args:
        step: the step to resume from; 0 for a new run.
        trackers: opens what else takes metrics and episodes, once the records are cut; by default TensorBoard alone.
    """

    def __init__(self, folder: Path, *, step: int, trackers: Callable[[], Trackers] | None = None) -> None:
        self.folder = folder
        with stop_on_full_disk(folder):
            self._open(folder, step)
            self._trackers = trackers() if trackers else Trackers([TensorBoard(folder)])

    def _open(self, folder: Path, step: int) -> None:
        (folder / "episodes").mkdir(parents=True, exist_ok=True)
        (folder / "heldout").mkdir(exist_ok=True)
        for path in (*folder.glob("episodes/*.parquet"), *folder.glob("heldout/*.parquet")):
            named = STEP_FILE.fullmatch(path.name)  # a copy that somebody put there has another name, and stays
            if named and int(named[1]) > step:
                path.unlink()
        for name in ("metrics.jsonl", "ledger.jsonl", "lost.jsonl"):
            cut_after(folder / name, step)

    def record_step(self, step: int, batch: StepBatch, figures: Mapping[str, float]) -> None:
        """Writes episodes first, then the ledger, then metrics: samples in the ledger have their episodes on disk.

        Raises:
            RunError: the disk is full; the steps before are whole.
        """
        rows = list(rows_of_step(step, batch))
        with stop_on_full_disk(self.folder):
            write_episodes(self.folder / "episodes" / f"step-{step:06d}.parquet", rows)
            for group in batch.lost:
                append_line(
                    self.folder / "lost.jsonl",
                    {
                        "step": step,
                        "sample": group.ref.uid,
                        "reason": group.reason,
                        "row": group.ref.row if group.is_skipped_row else None,
                    },
                )
            append_line(self.folder / "ledger.jsonl", {"step": step, "samples": [ref.uid for ref in batch.drawn]})
        self.record_figures(step, figures)
        self._trackers.log_episodes(step, "episodes", rows)

    def record_evaluation(self, step: int, plays: Sequence[HeldoutPlay], figures: Mapping[str, float]) -> None:
        """Held-out episodes are written to separate files with the same columns."""
        rows = list(rows_of_evaluation(step, plays))
        with stop_on_full_disk(self.folder):
            write_episodes(self.folder / "heldout" / f"step-{step:06d}.parquet", rows)
        self.record_figures(step, figures)
        self._trackers.log_episodes(step, "heldout", rows)

    def record_figures(self, step: int, figures: Mapping[str, float]) -> None:
        with stop_on_full_disk(self.folder):
            append_line(self.folder / "metrics.jsonl", {"step": step, **figures})
        self._trackers.log_step(step, figures)

    def close(self) -> None:
        self._trackers.finish()


def cut_after(path: Path, step: int) -> None:
    """Keep the lines up to this step; a truncated last line is removed."""
    if not path.exists():
        return
    kept = [line for line in path.read_text(errors="replace").splitlines() if _step_of(line) <= step]
    write_atomically(path, "".join(f"{line}\n" for line in kept))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
