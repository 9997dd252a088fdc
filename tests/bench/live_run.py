"""A run in a process of its own, watched from outside: its members over time, and what is done to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.records.events import LoggedEvent, read_log
from cluster.records.reading import read_metrics
from cluster.status.files import read_snapshot
from cluster.status.views import WORKING, MemberView, Role
from tests.bench.elastic_driver import COMPARED
from tests.bench.three_nodes import ThreeNodes, wait_until

LOOK_S = 0.2
SHOWN_S = 2.0
"""After which the status of a run shows what has happened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """Something that was done to a run."""

    what: str
    at: float
    """Wall-clock time."""
    recovery_s: float
    """Until the run had the members that it should have, all of them working."""
    lost_s: float
    """Of it, until the learner had the state again, or a rollout worker serves in place of the lost one."""


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class LiveRun:
    """The command, and what its folder says while it runs. Leaving the context ends it.

    Args:
        replays: whether its updates are done once more at the end, to compare losses.
    """

    def __init__(self, name: str, folder: Path, nodes: ThreeNodes, overrides: Sequence[str], *, replays: bool) -> None:
        self.name, self.folder = name, folder / name
        self._losses = folder / f"{name}.losses.json"
        self._nodes = nodes
        self._command = [sys.executable, "-m", "tests.bench.elastic_driver", str(self._losses) if replays else "-"]
        self._command += [f"run.name={name}", f"run.dir={folder}", *overrides]
        self.seen: list[tuple[float, tuple[MemberView, ...]]] = []
        """Wall-clock time and members, at each change."""
        self.strikes: list[Strike] = []
        self._unsettled: list[Callable[[], bool]] = []
        self._step_ends: list[float] = []
        self._is_over = threading.Event()

    def __enter__(self) -> LiveRun:
        self.start()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._watcher.join()
        self.kill()

    def start(self) -> None:
        environment = {**os.environ, **self._nodes.environment}
        self.process = subprocess.Popen(self._command, env=environment, stdout=sys.stderr)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def finish(self, within_s: float) -> None:
        if self.process.wait(within_s):
            raise RuntimeError(f"{self.name} ended with {self.process.returncode}")

    @property
    def step(self) -> int:
        """The last finished one, by the ledger."""
        path = self.folder / "ledger.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    @property
    def members(self) -> tuple[MemberView, ...]:
        try:
            return read_snapshot(self.folder).status.members
        except ValueError:
            return ()

    @property
    def is_live(self) -> bool:
        """Whether the driver that was started last has finished a step."""
        try:
            snapshot = read_snapshot(self.folder)
        except ValueError:
            return False
        return snapshot.pid == self.process.pid and snapshot.status.state == "running"

    def num_working(self, role: Role) -> int:
        return sum(each.role == role and each.state == WORKING for each in self.members)

    def events(self, since: float = 0.0) -> list[LoggedEvent]:
        return [logged for logged in read_log(self.folder) if logged.time >= since]

    def wait(self, is_true: Callable[[], bool], what: str, within_s: float = 600.0) -> None:
        def is_true_or_ended() -> bool:
            for is_over in self._unsettled:
                is_over()
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended with {self.process.returncode} before {what}")
            return is_true()

        wait_until(is_true_or_ended, what, within_s)

    def wait_for(self, step: int) -> None:
        self.wait(lambda: self.step >= step, f"step {step}")

    def wait_steps(self, number: int) -> None:
        self.wait_for(self.step + number)

    def strike(
        self,
        what: str,
        act: Callable[[], Any],
        is_whole: Callable[[], bool],
        goes_on: Callable[[LoggedEvent], bool] | None = None,
    ) -> None:
        """Do something, and wait until the run is whole again.

        Args:
            goes_on: the event that says that the run makes progress again; by default, that it is whole.
        """
        self.begin_strike(what, act, is_whole, goes_on)()

    def begin_strike(
        self,
        what: str,
        act: Callable[[], Any],
        is_whole: Callable[[], bool],
        goes_on: Callable[[LoggedEvent], bool] | None = None,
    ) -> Callable[[], None]:
        """Do something; the result waits until the run is whole again."""
        at, started = time.time(), time.monotonic()
        act()
        _say(f"{what}, after step {self.step}")
        went_on: list[float] = []

        whole_at: list[float] = []

        def is_over() -> bool:
            if goes_on is not None and not went_on:
                went_on.extend([logged.time - at for logged in self.events(at) if goes_on(logged)][:1])
            if whole_at:
                return True
            is_shown = time.time() - at - (went_on[0] if went_on else 0.0) > SHOWN_S
            if is_shown and (goes_on is None or went_on) and is_whole():
                whole_at.append(time.monotonic())
            return bool(whole_at)

        def settle() -> None:
            self._unsettled.remove(is_over)
            if not whole_at:
                self.wait(is_over, f"recovery from: {what}")
            seconds = whole_at[0] - started
            strike = Strike(what=what, at=at, recovery_s=seconds, lost_s=went_on[0] if went_on else seconds)
            _say(f"{what}: goes on after {strike.lost_s:.1f} s, whole after {strike.recovery_s:.1f} s")
            self.strikes.append(strike)

        self._unsettled.append(is_over)
        return settle

    def result(self) -> dict[str, Any]:
        """What the run left behind."""
        ledger = [json.loads(line)["samples"] for line in (self.folder / "ledger.jsonl").read_text().splitlines()]
        steps = [row for row in read_metrics(self.folder) if "time/step_s" in row]
        return {
            "ledger": ledger,
            "step_s": [row["time/step_s"] for row in steps],
            "wall_s": [row["run/wall_s"] for row in steps],
            "useful_time_metric": steps[-1]["run/useful_time"],
            "learned": [{name: row.get(name) for name in COMPARED} for row in steps],
            "replayed": json.loads(self._losses.read_text()) if self._losses.exists() else None,
            "heldout": json.loads((self.folder / "summary.json").read_text())["heldout"],
            "recovery_s": [
                {
                    "what": strike.what,
                    "recovery_s": round(strike.recovery_s, 2),
                    "went_on_s": round(strike.lost_s, 2),
                    "at": strike.at,
                }
                for strike in self.strikes
            ],
            "members": [[at, [[each.name, each.role, each.state] for each in members]] for at, members in self.seen],
            "step_ends": self._step_ends,
            "ended_at": time.time(),
        }

    def _watch(self) -> None:
        while not self._is_over.wait(LOOK_S):
            members, step = self.members, self.step
            self._step_ends += [time.time()] * (step - len(self._step_ends))
            shown = [(each.name, each.state) for each in members]
            if not self.seen or shown != [(each.name, each.state) for each in self.seen[-1][1]]:
                self.seen.append((time.time(), members))
