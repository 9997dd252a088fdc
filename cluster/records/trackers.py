"""Experiment trackers of a run, beside its own records: a tracker that fails or hangs costs the run nothing.

`run.trackers` names them. TensorBoard writes into the run's folder; the others take metrics and an episode table, and
stay offline unless their own environment variables say otherwise (`cluster/records/tracker_adapters.py`).
"""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from actors.tools.registry import toolbox_of
from cluster.records.curves import Curves
from cluster.records.tracker_adapters import ADAPTERS, Row, Tracker
from configs.run import TrackerName
from configs.schema import Config

MAX_WAITING = 1000
"""Calls that wait for a tracker; more are dropped, as it hangs."""
FINISH_S = 60.0
"""For a tracker to write what it has, at the end of a run."""
MAX_EPISODES = 32
"""Of a step, in the episode table: as diverse as possible."""
COLUMNS = (
    *("step", "sample", "question", "reference", "answer", "asked", "needs_full", "is_correct", "reason"),
    *("reward", "advantage", "is_trained", "visual_tokens", "text"),
)
NEED_COLUMNS = ("kind", "needed_view", "is_right_tool", "least_visual_tokens")
"""Added where a data set says what a sample needs, and there is more to choose from than the full view."""


class TensorBoard:
    """Metrics alone, in the run's folder; gives itself up on a full disk."""

    def __init__(self, folder: Path) -> None:
        self._curves = Curves(folder)

    def log_step(self, step: int, figures: Mapping[str, float]) -> None:
        self._curves.add(step, figures)

    def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
        """TensorBoard has no tables."""

    def finish(self) -> None:
        self._curves.close()


class Background:
    """A tracker in a thread of its own, from its start on. The first failure is told, and ends it."""

    def __init__(self, name: str, start: Callable[[], Tracker], *, warn: Callable[[str], None]) -> None:
        self._name, self._warn = name, warn
        self._is_given_up = False
        self._calls: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._work, args=(start,), name=f"tracker {name}", daemon=True)
        self._thread.start()

    def log_step(self, step: int, figures: Mapping[str, float]) -> None:
        self._put(lambda tracker: tracker.log_step(step, figures))

    def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
        self._put(lambda tracker: tracker.log_table(step, name, columns, rows))

    def finish(self, timeout_s: float = FINISH_S) -> None:
        """Let it write what it has, for so long at most."""
        self._put(lambda tracker: tracker.finish())
        self._put(None)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._give_up(f"it did not finish within {timeout_s:g} s")

    def _put(self, call: Callable[[Tracker], None] | None) -> None:
        try:
            if not self._is_given_up:
                self._calls.put_nowait(call)
        except queue.Full:
            self._give_up(f"{MAX_WAITING} calls wait for it")

    def _work(self, start: Callable[[], Tracker]) -> None:
        with _GivingUp(self._give_up):
            tracker = start()
            while (call := self._calls.get()) is not None and not self._is_given_up:
                call(tracker)

    def _give_up(self, reason: str) -> None:
        if not self._is_given_up:
            self._is_given_up = True
            self._warn(f"{self._name} is no longer written to: {reason}; the run goes on, and its records have all")


class _GivingUp:
    """Turns whatever a tracker's library raises, which may be anything, into the reason to give it up."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if error is None:
            return True
        message = next(iter(str(error).splitlines()), "")
        self._tell(f"{type(error).__name__}: {message[:300]}")
        return True


class Trackers:
    """All trackers of a run as one.

    Args:
        has_tool_choice: the policy has more to choose from than the full view.
    """

    def __init__(self, trackers: Sequence[Tracker], *, has_tool_choice: bool = False) -> None:
        self._trackers, self.has_tool_choice = trackers, has_tool_choice

    def log_step(self, step: int, figures: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.log_step(step, figures)

    def log_episodes(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table of some episodes of a step; `rows` are those of `cluster.records.episodes`."""
        if all(isinstance(tracker, TensorBoard) for tracker in self._trackers):
            return
        tells_needs = self._tells_needs(rows)
        columns = COLUMNS + NEED_COLUMNS if tells_needs else COLUMNS
        shown = _some(rows, _kind_and_need if tells_needs else _kind)
        cells = [tuple(_cells(row).get(column) for column in columns) for row in shown]
        for tracker in self._trackers:
            tracker.log_table(step, name, columns, cells)

    def finish(self) -> None:
        for tracker in self._trackers:
            tracker.finish()

    def _tells_needs(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        views = {row.get("needed_view") for row in rows} - {None}
        return bool(views) and (self.has_tool_choice or not views <= {"quarter", "full"})


def _kind(row: Mapping[str, Any]) -> tuple[object, ...]:
    """Full view needed, tool call, correct."""
    return row["needs_full"], row["asked"], row["is_correct"]


def _kind_and_need(row: Mapping[str, Any]) -> tuple[object, ...]:
    need = (row["needed_view"] or "").partition(":")[0]
    return *_kind(row), need, row.get("is_right_tool")


def _some(
    rows: Sequence[Mapping[str, Any]], kind: Callable[[Mapping[str, Any]], tuple[object, ...]]
) -> list[Mapping[str, Any]]:
    """The first of each kind, then others from all over the step."""
    kinds: dict[object, Mapping[str, Any]] = {}
    for row in rows:
        kinds.setdefault(kind(row), row)
    firsts = list(kinds.values())
    spread = rows[:: max(1, len(rows) // MAX_EPISODES)]
    return [*firsts, *(row for row in spread if all(row is not first for first in firsts))][:MAX_EPISODES]


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    turns = row["turns"]
    shown = {"visual_tokens": sum(turn["num_visual_tokens"] for turn in turns)}
    return {**row, **shown, "text": "\n\n".join(turn["text"] for turn in turns)}


def open_trackers(folder: Path, config: Config, *, run_id: str, warn: Callable[[str], None]) -> Trackers:
    """The trackers of `run.trackers`; one whose package is missing is told and left out."""

    def start(name: TrackerName) -> Tracker:
        if name == "tensorboard":
            return TensorBoard(folder)
        starter = functools.partial(ADAPTERS[name], folder, config.run.name, run_id, asdict(config))
        return Background(name, starter, warn=warn)

    has_tool_choice = not toolbox_of(config.rollout.tools).is_resize_alone
    return Trackers([start(name) for name in config.run.trackers], has_tool_choice=has_tool_choice)
