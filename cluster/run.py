"""A run that is up: its parts, and what the main loop does with them besides learning."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from actors.data.dataset import CursorState, Dataset, PromptCursor, SkipLedger
from actors.errors import CheckpointError
from actors.fleet.pool import RolloutPool
from cluster.collect import Collected
from cluster.display import Display
from cluster.evaluate import Evaluation
from cluster.judging.watch import JudgeWatch
from cluster.records.metrics import summarize
from cluster.records.recorder import Recorder
from configs.schema import Config
from judge.pool import JudgePool
from learner.checkpoint import write_checkpoint
from learner.group import LearnerGroup
from learner.update import UpdateReport

STATE = "state.json"
MAX_HASHED_BYTES = 64 << 20
"""Larger files of the initial model are identified by name and size."""
PACKAGES = ("ray", "torch", "transformers", "deepspeed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What must not change between a checkpoint and its resumption."""

    dataset: str
    model: str
    seed: int
    packages: dict[str, str]


def identify(config: Config, train_set: Dataset) -> Identity:
    """Identity of a run: its data, initial model, seed and package versions."""
    files = sorted(path for path in Path(config.model.path).iterdir() if path.suffix in (".json", ".safetensors"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        if path.stat().st_size <= MAX_HASHED_BYTES:
            digest.update(path.read_bytes())
    return Identity(
        dataset=train_set.identity(),
        model=digest.hexdigest(),
        seed=config.run.seed,
        packages={name: metadata.version(name) for name in PACKAGES},
    )


def check_identity(saved: Mapping[str, Any], current: Identity) -> None:
    """Refuse a checkpoint that belongs to other data, another model or other packages, with both values."""
    for name, value in asdict(current).items():
        if saved.get(name) != value:
            raise CheckpointError(f"the checkpoint was written with {name}={saved.get(name)!r}, this run has {value!r}")


class Run:
    """Rollouts, judges and learner of one run, its data and its records. `cluster/launch.py` builds it."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        *,
        rollouts: RolloutPool,
        judges: JudgePool,
        learner: LearnerGroup,
        train_set: Dataset,
        heldout: Dataset,
        display: Display,
        started_at: float,
        count_judges: Callable[[], int | None] | None = None,
    ) -> None:
        self.config = config
        self.folder = folder
        self.rollouts = rollouts
        self.judges = judges
        self.judge_watch = JudgeWatch(judges, config, warn=display.warn, count_replicas=count_judges)
        self.learner = learner
        self.heldout = heldout
        self.display = display
        self.prompts = PromptCursor(dataset=config.data.train, num_rows=len(train_set), seed=config.run.seed)
        self.skips = SkipLedger(max_skipped_fraction=config.data.max_skipped_fraction)
        self.identity = identify(config, train_set)
        self.step = 0
        """The last finished step."""
        self.recorder: Recorder | None = None
        self._started_at = started_at
        self._first_step_at: float | None = None
        self._num_episodes = 0
        self._loop_seconds = 0.0
        self._publish_seconds = 0.0
        self._ready_at = time.monotonic()

    async def restore(self, checkpoint: Path) -> None:
        """Continue where this checkpoint stopped: weights, optimizer, data position, step."""
        state = json.loads((checkpoint / STATE).read_text())
        check_identity(state["identity"], self.identity)
        await self.learner.load(checkpoint)
        self.prompts.restore(CursorState(**state["cursor"]))
        self.judge_watch.restore(state.get("judge", {}))
        self.step = state["step"]

    def start_recording(self) -> None:
        self.recorder = Recorder(self.folder, step=self.step)
        self.display.started(self.step)
        self._ready_at = time.monotonic()

    async def publish(self) -> None:
        """Bring the learner's weights to every rollout worker, under version = optimizer step."""
        started = time.monotonic()
        manifest, buckets = await self.learner.export_weights()
        await self.rollouts.publish(manifest, buckets)
        self._publish_seconds = time.monotonic() - started

    def record(self, step: int, collected: Collected, update: UpdateReport) -> None:
        """Write a finished step to every record and show it."""
        now = time.monotonic()
        self._first_step_at = self._first_step_at or now
        self.step = step
        figures = {
            **summarize(collected, update.start_version),
            **update.metrics,
            "policy/version": float(update.optimizer_step),
            **self.judge_watch.figures(),
            "time/update_s": update.seconds,
            "time/publish_s": self._publish_seconds,
            "time/step_s": now - self._ready_at,
        }
        for group in collected.lost:
            if group.is_skipped_row and not self.skips.is_news(group.ref):
                continue
            self.display.warn(f"sample {group.ref.uid}: {group.reason}")
        self._num_episodes += sum(len(group.played.episodes) for group in collected.scored)
        self._loop_seconds += now - self._ready_at
        assert self.recorder is not None
        self.recorder.record_step(step, collected, figures)
        self.display.step_done(step, figures)
        self._ready_at = time.monotonic()

    def record_evaluation(self, step: int, evaluation: Evaluation) -> None:
        figures = {
            f"heldout/{name}": float(x) for name, x in evaluation.figures().items() if isinstance(x, int | float)
        }
        judging = self.judge_watch.figures()
        figures |= {f"heldout/judge_{name}": judging[f"judge/{name}"] for name in ("calls", "llm_calls", "cost_usd")}
        assert self.recorder is not None
        self.recorder.record_figures(step, figures)
        self._ready_at = time.monotonic()

    async def save(self, step: int, collected: Collected) -> None:
        """Write a checkpoint that verifies, or none at all (rules F and G)."""
        loop = asyncio.get_running_loop()
        state = {
            "step": step,
            "cursor": asdict(collected.cursor),
            "identity": asdict(self.identity),
            "judge": self.judge_watch.totals(),
        }

        def write(folder: Path) -> None:
            asyncio.run_coroutine_threadsafe(self.learner.save(folder), loop).result()
            (folder / STATE).write_text(json.dumps(state, indent=1))

        checkpoints = self.folder / "checkpoints"
        await asyncio.to_thread(write_checkpoint, checkpoints, step, write, self.config.train.keep_checkpoints)
        self._ready_at = time.monotonic()

    async def finish(self, evaluation: Evaluation) -> dict[str, object]:
        """Export the policy, write the report; returns the figures of the whole run."""
        from cluster.records.report import write_report  # draws with matplotlib, which no other moment of a run needs

        self.record_evaluation(self.step, evaluation)
        await self.learner.export_hf(self.folder / "export")
        assert self.recorder is not None
        self.recorder.close()
        summary = {
            "run": str(self.folder),
            "steps": self.step,
            "first_step_s": None if self._first_step_at is None else round(self._first_step_at - self._started_at, 2),
            "episodes_per_s": round(self._num_episodes / self._loop_seconds, 2) if self._loop_seconds else None,
            "wall_s": round(time.monotonic() - self._started_at, 2),
            "judge": self.judge_watch.totals(),
            "heldout": evaluation.figures(),
        }
        (self.folder / "summary.json").write_text(json.dumps(summary, indent=1))
        await asyncio.to_thread(write_report, self.folder)
        return summary
