"""What a run leaves behind: config.yaml, metrics.jsonl, TensorBoard events, ledger.jsonl, episodes/*.parquet.

All of it is keyed by step. A resumed run cuts everything after the step it resumes from, so that each file tells one
story: `ledger.jsonl` lists every sample that a step consumed, in the cursor's order, once.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.errors import RunError
from cluster.collect import Collected
from cluster.records.reading import read_metrics
from cluster.score import ScoredGroup
from judge.verdict import Verdict

TURN = pa.struct(
    [
        ("text", pa.string()),
        ("view", pa.string()),
        ("num_visual_tokens", pa.int32()),
        ("num_prompt_tokens", pa.int32()),
        ("completion_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("policy_version", pa.int64()),
        ("finish_reason", pa.string()),
    ]
)
EPISODES = pa.schema(
    [
        ("step", pa.int64()),
        ("sample", pa.string()),
        ("index", pa.int32()),
        ("attempt", pa.int32()),
        ("dataset", pa.string()),
        ("row", pa.int64()),
        ("question", pa.string()),
        ("reference", pa.string()),
        ("needs_full", pa.bool_()),
        ("image_sha256", pa.string()),
        ("status", pa.string()),
        ("asked", pa.bool_()),
        ("answer", pa.string()),
        ("is_well_formed", pa.bool_()),
        ("is_correct", pa.bool_()),
        ("judge", pa.string()),
        ("reason", pa.string()),
        ("judge_version", pa.string()),
        ("judge_model", pa.string()),
        ("num_calls", pa.int32()),
        ("prompt_tokens", pa.int64()),
        ("reply_tokens", pa.int64()),
        ("reward", pa.float64()),
        ("advantage", pa.float64()),
        ("is_trained", pa.bool_()),
        ("policy_versions", pa.list_(pa.int64())),
        ("turns", pa.list_(TURN)),
    ]
)


def lock_run_folder(folder: Path) -> IO[str]:
    """Hold the run's folder for one driver (fault 23). The lock goes with the process, also on kill -9.

    Raises:
        RunError: another driver holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise RunError(f"{folder} is in use by another driver: wait for it, or set run.name") from error
    return lock


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a kill leaves the old one or the new one."""
    partial = path.with_suffix(".tmp")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


class Recorder:
    """Writes one run's files. `step` is where the run resumes; 0 starts anew."""

    def __init__(self, folder: Path, *, step: int) -> None:
        from tensorboard.summary import Writer  # slow to import: only where a run is recorded

        self.folder = folder
        (folder / "episodes").mkdir(parents=True, exist_ok=True)
        for stale in (folder / "episodes").glob("step-*.parquet"):
            if int(stale.stem.removeprefix("step-")) > step:
                stale.unlink()
        for name in ("metrics.jsonl", "ledger.jsonl", "lost.jsonl"):
            cut_after(folder / name, step)
        # Event files cannot be cut, so they are told anew from the figures that were kept.
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        self._tensorboard = Writer(str(folder / "tensorboard"))
        for figures in read_metrics(folder):
            self._plot(int(figures["step"]), figures)

    def record_step(self, step: int, collected: Collected, figures: Mapping[str, float]) -> None:
        """Episodes first, then the ledger, then the figures: what is in the ledger has its episodes on disk."""
        write_episodes(self.folder / "episodes" / f"step-{step:06d}.parquet", step, collected)
        for group in collected.lost:
            _append(self.folder / "lost.jsonl", {"step": step, "sample": group.ref.uid, "reason": group.reason})
        _append(self.folder / "ledger.jsonl", {"step": step, "samples": [ref.uid for ref in collected.drawn]})
        self.record_figures(step, figures)

    def record_figures(self, step: int, figures: Mapping[str, float]) -> None:
        _append(self.folder / "metrics.jsonl", {"step": step, **figures})
        self._plot(step, figures)

    def _plot(self, step: int, figures: Mapping[str, float]) -> None:
        for name, figure in figures.items():
            if name != "step":
                self._tensorboard.add_scalar(name, figure, step)
        self._tensorboard.flush()

    def close(self) -> None:
        self._tensorboard.close()


def cut_after(path: Path, step: int) -> None:
    """Keep the lines up to this step; a torn last line goes as well."""
    if not path.exists():
        return
    kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
    write_whole(path, "".join(f"{line}\n" for line in kept))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _append(path: Path, entry: Mapping[str, Any]) -> None:
    with path.open("a") as lines:
        lines.write(json.dumps(entry) + "\n")
        lines.flush()
        os.fsync(lines.fileno())


def write_episodes(path: Path, step: int, collected: Collected) -> None:
    """Every episode of a step as one Parquet file, whole or not at all; those without verdicts for another judge."""
    unjudged = [lost.group for lost in collected.lost if lost.group is not None]
    rows = [row for group in collected.trained for row in _rows(step, group, is_trained=True)]
    rows += [row for group in (*collected.without_signal, *unjudged) for row in _rows(step, group, is_trained=False)]
    partial = path.with_suffix(".tmp")
    pq.write_table(pa.Table.from_pylist(rows, schema=EPISODES), partial, compression="zstd", write_page_checksum=True)
    os.replace(partial, path)


def _rows(step: int, group: ScoredGroup, *, is_trained: bool) -> Iterable[dict[str, Any]]:
    played = group.played
    for episode, outcome, reward, advantage in zip(
        played.episodes, group.outcomes, group.rewards, group.advantages, strict=True
    ):
        yield {
            "step": step,
            "sample": played.ref.uid,
            "index": episode.id.index,
            "attempt": episode.id.attempt,
            "dataset": played.ref.dataset,
            "row": played.ref.row,
            "question": played.question,
            "reference": played.answer,
            "needs_full": played.needs_full,
            "image_sha256": played.image_sha256,
            "status": str(episode.status),
            "asked": episode.asked,
            "answer": episode.answer,
            "is_well_formed": episode.is_well_formed,
            "is_correct": outcome.is_correct if isinstance(outcome, Verdict) else None,
            "judge": outcome.judge if isinstance(outcome, Verdict) else None,
            "reason": outcome.reason,
            "judge_version": outcome.judge_version if isinstance(outcome, Verdict) else None,
            "judge_model": outcome.model if isinstance(outcome, Verdict) else None,
            "num_calls": outcome.usage.num_calls,
            "prompt_tokens": outcome.usage.prompt_tokens,
            "reply_tokens": outcome.usage.reply_tokens,
            "reward": None if reward is None else reward.total,
            "advantage": advantage,
            "is_trained": is_trained,
            "policy_versions": [turn.policy_version for turn in episode.turns],
            "turns": [
                {
                    "text": turn.text,
                    "view": turn.view,
                    "num_visual_tokens": turn.num_visual_tokens,
                    "num_prompt_tokens": len(turn.prompt_ids),
                    "completion_ids": turn.completion_ids,
                    "logprobs": turn.logprobs,
                    "policy_version": turn.policy_version,
                    "finish_reason": turn.finish_reason,
                }
                for turn in episode.turns
            ],
        }
