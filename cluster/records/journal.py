"""Records and displays every finished step and evaluation: metrics, episodes, ledger, progress."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

from cluster.display import Display
from cluster.evaluate import Evaluation
from cluster.judging.watch import JudgeWatch
from cluster.records.events import Event
from cluster.records.files import run_id, stop_on_full_disk, write_atomically
from cluster.records.metrics import summarize
from cluster.records.reading import read_metrics
from cluster.records.recorder import Recorder
from cluster.records.tool_metrics import drift
from cluster.records.trackers import open_trackers
from cluster.records.work import WorkMeter, earlier_work
from cluster.runs.lease import Lease
from cluster.signal import NO_SIGNAL_CAUSES, SignalWatch, StepSignal
from cluster.status.observer import Observer
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
        observer: Observer,
    ) -> None:
        self._before_record = lease.check if lease else lambda: None
        self.folder = folder
        self.step = step
        self._config = config
        self._clock = clock
        self._judge_watch = judge_watch
        self._display = display
        self._signal = SignalWatch(stop_after=config.train.stop_without_signal)
        self._observer = observer
        self._skipped: set[str] = set()
        recorded = read_metrics(folder)  # before the recorder cuts them
        before = earlier_work(recorded, step)
        self._work = WorkMeter(before, started_at=clock.started_at)
        self._recorder = Recorder(
            folder,
            step=step,
            trackers=lambda: open_trackers(folder, config, run_id=run_id(folder), warn=display.warn),
        )
        display.started(step)
        observer.started(step)
        if steps := before.repeated_steps:
            which = f"step {steps[0]} is" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]} are"
            detail = f"{which} newer than the checkpoint and done again"
            observer.add_event(Event(kind="replay", who="run", detail=detail))
        evaluated = (figures for figures in recorded if "heldout/accuracy" in figures and figures["step"] <= step)
        self._first_evaluation: Mapping[str, float] = next(evaluated, {})
        skipped = [figures.get("learner/skipped_updates", 0) for figures in recorded if figures["step"] <= step]
        self._num_skipped_updates = int(max(skipped, default=0))
        self._num_replays = observer.events.num("replay") - len(before.repeated_steps)

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
        self._log_losses(step, batch, figures)
        figures |= self._wasted(seconds, batch) | self._observer.events.figures()
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
        self._observer.step_done(step, figures)

    def _log_losses(self, step: int, batch: StepBatch, figures: Mapping[str, float]) -> None:
        """An event for each group without training, and one for episodes without a verdict and skipped updates."""
        for group in batch.lost:
            if group.is_skipped_row and group.reason in self._skipped:
                continue  # the row comes up again in every epoch
            if group.is_skipped_row:
                self._skipped.add(group.reason)
            self._observer.add_event(Event(kind="skip", who=f"sample {group.ref.uid}", detail=group.reason, step=step))
        if num := int(figures.get("episodes/unscored", 0)):
            num_all = num + int(figures["episodes/scored"])
            detail = f"{num} of {num_all} episodes left out of their groups, for lack of a verdict"
            self._observer.add_event(Event(kind="mask", who="judges", detail=detail, step=step))
        num = int(figures.get("learner/skipped_updates", 0))
        if num > self._num_skipped_updates:
            detail = f"{num - self._num_skipped_updates} optimizer steps with a loss or gradient that is not finite"
            self._observer.add_event(Event(kind="skip", who="learner", detail=detail, step=step))
        self._num_skipped_updates = num

    def _wasted(self, seconds: float, batch: StepBatch) -> dict[str, float]:
        """What this step did twice or for nothing, and the share of useful time so far."""
        events, episodes = self._observer.events, [e for group in batch.scored for e in group.played.episodes]
        num_replays, self._num_replays = events.num("replay") - self._num_replays, events.num("replay")
        return {
            **self._work.step_done(seconds, events.seconds("reform", "replay", "join")),
            "waste/episodes_again": float(sum(episode.id.attempt > 0 for episode in episodes)),
            "waste/updates_replayed": float(num_replays),
        }

    def record_evaluation(self, evaluation: Evaluation) -> None:
        """Record metrics and episodes of an evaluation under the last finished step."""
        self._before_record()
        figures = {
            f"heldout/{name}": float(x) for name, x in evaluation.figures().items() if isinstance(x, int | float)
        }
        figures |= self._drift(figures)
        judging = self._judge_watch.figures()
        figures |= {f"heldout/judge_{name}": judging[f"judge/{name}"] for name in ("calls", "llm_calls", "cost_usd")}
        self._recorder.record_evaluation(self.step, evaluation.plays, figures)
        self._display.started(self.step)

    def _drift(self, figures: dict[str, float]) -> dict[str, float]:
        """What changed since the first evaluation of the run, without tools and through them."""
        self._first_evaluation = self._first_evaluation or figures
        found = drift(self._first_evaluation, figures)
        return {"heldout/drift_intrinsic": found.intrinsic, "heldout/drift_tool": found.tool} if found else {}

    async def finish(self, evaluation: Evaluation) -> dict[str, object]:
        """Close the records and write the report; returns the summary of the run."""
        from cluster.viewer.report import write_report  # no other moment of a run needs it

        self._before_record()
        if self._signal.never_had_signal:
            self._display.warn(NO_SIGNAL_CAUSES)
        await asyncio.to_thread(self._recorder.close)  # trackers may take a while
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
