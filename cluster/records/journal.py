"""Records and displays every finished step and evaluation: metrics, episodes, ledger, progress."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from cluster.display import Display
from cluster.evaluate import Evaluation
from cluster.judging.watch import JudgeWatch
from cluster.records.files import stop_on_full_disk, write_atomically
from cluster.records.metrics import summarize
from cluster.records.recorder import Recorder
from cluster.runs.lease import Lease
from cluster.signal import NO_SIGNAL_CAUSES, SignalWatch, StepSignal
from cluster.step import StepBatch
from cluster.timekeeping import RunClock
from cluster.weights import Publication
from configs.schema import Config
from learner.update import UpdateReport


class Journal:
    """One per run; `step` is the last finished step.

    Looks at the lease before each write.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        *,
        step: int,
        clock: RunClock,
        judge_watch: JudgeWatch,
        display: Display,
        lease: Lease | None = None,
    ) -> None:
        self._before_record = lease.check if lease else lambda: None
        self.folder = folder
        self.step = step
        self._config = config
        self._clock = clock
        self._judge_watch = judge_watch
        self._display = display
        self._signal = SignalWatch(stop_after=config.train.stop_without_signal)
        self._recorder = Recorder(folder, step=step)
        display.started(step)

    @property
    def is_complete(self) -> bool:
        """All steps are done, or the run stops early for lack of signal."""
        return self.step >= self._config.train.num_steps or self._signal.should_stop

    def begin_step(self) -> None:
        """Start timing a step, without the checkpoints and evaluations before it."""
        self._clock.begin_step()

    def record_step(self, step: int, batch: StepBatch, update: UpdateReport, published: Publication) -> None:
        """Record and display a finished step."""
        self._before_record()
        self.step = step
        seconds = self._clock.end_step(sum(len(group.played.episodes) for group in batch.scored))
        figures = {
            **summarize(batch, update.start_version),
            **update.metrics,
            "policy/version": float(update.optimizer_step),
            **self._judge_watch.figures(),
            "time/update_s": update.seconds,
            "time/publish_s": published.seconds,
            "time/publish_pause_s": published.pause_s,
            "time/step_s": seconds,
        }
        for group in batch.lost:
            if group.is_skipped_row:  # would repeat in every epoch and evaluation
                self._display.warn_once(f"skipped {group.reason}")
            else:
                self._display.warn(f"sample {group.ref.uid}: {group.reason}")
        signal = StepSignal(
            step=step,
            num_trained=len(batch.trained),
            num_scored=len(batch.scored),
            num_wanted=self._config.train.prompts_per_step,
        )
        if warning := self._signal.add(signal):
            self._display.warn(warning)
        self._recorder.record_step(step, batch, figures)
        self._display.step_done(step, figures)

    def record_evaluation(self, evaluation: Evaluation) -> None:
        """Record metrics and episodes of an evaluation under the last finished step."""
        self._before_record()
        figures = {
            f"heldout/{name}": float(x) for name, x in evaluation.figures().items() if isinstance(x, int | float)
        }
        judging = self._judge_watch.figures()
        figures |= {f"heldout/judge_{name}": judging[f"judge/{name}"] for name in ("calls", "llm_calls", "cost_usd")}
        self._recorder.record_evaluation(self.step, evaluation.plays, figures)
        self._display.started(self.step)

    async def finish(self, evaluation: Evaluation) -> dict[str, object]:
        """Close the records and write the report; returns the summary of the run."""
        from cluster.records.report import write_report  # draws with matplotlib, which no other moment of a run needs

        self._before_record()
        if self._signal.never_had_signal:
            self._display.warn(NO_SIGNAL_CAUSES)
        self._recorder.close()
        summary: dict[str, object] = {
            "run": str(self.folder),
            "steps": self.step,
            "num_steps": self._config.train.num_steps,
            **self._clock.figures(),
            "judge": self._judge_watch.totals(),
            "heldout": evaluation.figures(),
        }
        with stop_on_full_disk(self.folder):
            await asyncio.to_thread(write_report, self.folder)
            write_atomically(self.folder / "summary.json", json.dumps(summary, indent=1))  # last: the run is complete
        return summary
