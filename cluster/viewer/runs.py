"""The runs that a viewer shows: their folders, what lies in them now, and in what their settings differ."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from cluster.folders import CONFIG, read_summary
from cluster.records.events import FILE as EVENTS
from cluster.records.events import LoggedEvent, read_log
from cluster.records.reading import read_metrics
from cluster.status.files import STALE_S, is_alive, lease_owner, read_snapshot
from cluster.status.table import Look
from cluster.viewer.index import EpisodeIndex
from cluster.viewer.pictures import Pictures
from configs.load import load_saved
from configs.paths import resolve_paths
from configs.schema import Config
from judge.trust.check import Rate

METRICS = "metrics.jsonl"
T = TypeVar("T")


class RunFolder:
    """One run. Everything is read anew when its file changes; nothing is ever written."""

    def __init__(self, name: str, path: Path, *, max_bytes: int | None = None) -> None:
        self.name = name
        self.path = path
        self._max_bytes = max_bytes
        self._kept: dict[str, tuple[object, Any]] = {}
        self._beat: tuple[int, int] | None = None
        self._beat_changed_at = float("-inf")

    @cached_property
    def episodes(self) -> EpisodeIndex:
        return EpisodeIndex(self.path, max_bytes=self._max_bytes)

    @cached_property
    def pictures(self) -> Pictures:
        config = self.config
        return Pictures(config if isinstance(config, Config) else Config())

    @property
    def metrics(self) -> list[dict[str, float]]:
        return self._fresh(METRICS, lambda: read_metrics(self.path))

    @property
    def events(self) -> list[LoggedEvent]:
        return self._fresh(EVENTS, lambda: read_log(self.path))

    @property
    def config(self) -> Config | str:
        """Its settings, or why this version cannot read them."""

        def read() -> Config | str:
            try:
                return resolve_paths(load_saved(self.path / CONFIG)[0])
            except (ValueError, OSError) as error:
                return str(error)

        return self._fresh(CONFIG, read)

    @property
    def look(self) -> Look | None:
        """Its status; None where it has none. A driver whose clock differs is alive once it was seen to beat."""
        try:
            snapshot = read_snapshot(self.path)
        except ValueError:
            return None
        beat = (snapshot.beat, snapshot.pid)
        if self._beat not in (None, beat):
            self._beat_changed_at = time.monotonic()
        self._beat = beat
        has_beaten = time.monotonic() - self._beat_changed_at < STALE_S and not snapshot.status.is_over
        alive = has_beaten or is_alive(self.path, snapshot, sleep=lambda _: None)
        return Look(
            snapshot=snapshot, is_alive=alive, now=time.time(), owner=lease_owner(self.path), events=self.events
        )

    @property
    def state(self) -> str:
        look = self.look
        return look.state if look else "ended" if read_summary(self.path) else "unknown"

    @property
    def pulse(self) -> str:
        """Changes whenever something of the run was written."""
        files = [self.path / name for name in (METRICS, EVENTS, "episodes", "heldout")]
        return "-".join(str(_stamp(path)) for path in files) + self.state

    def heldout(self, key: str = "accuracy") -> Rate | None:
        """A share of the last evaluation, with its number of cases, as recorded in the metrics."""
        for figures in reversed(self.metrics):
            if f"heldout/{key}" in figures:
                num = int(figures.get("heldout/num_episodes", 0) - figures.get("heldout/num_unscored", 0))
                return Rate(num_hits=round(figures[f"heldout/{key}"] * num), num_cases=num)
        return None

    def last(self, key: str) -> float | None:
        """The newest value of a metric."""
        return next((figures[key] for figures in reversed(self.metrics) if key in figures), None)

    def _fresh(self, name: str, read: Callable[[], T]) -> T:
        stamp = _stamp(self.path / name)
        if name not in self._kept or self._kept[name][0] != stamp:
            self._kept[name] = (stamp, read())
        found: T = self._kept[name][1]
        return found


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_mtime_ns, stat.st_size


class RunBook:
    """All runs of a viewer by name. Folders of runs are looked through again, as new runs may start there."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._runs: dict[str, RunFolder] = {}
        self._lock = threading.Lock()

    def all(self) -> dict[str, RunFolder]:
        """Newest first."""
        with self._lock:
            known = {run.path for run in self._runs.values()}
            for path in find_runs(self._paths):
                if path not in known:
                    name, number = path.name, 2
                    while name in self._runs:
                        name, number = f"{path.name}~{number}", number + 1
                    self._runs[name] = RunFolder(name, path)
            there = {name: run for name, run in self._runs.items() if (run.path / CONFIG).is_file()}
        return dict(sorted(there.items(), key=lambda item: _stamp(item[1].path / METRICS), reverse=True))

    def get(self, name: str) -> RunFolder | None:
        found = self._runs.get(name)
        return found if found is not None else self.all().get(name)


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Run folders among the paths and directly below them.

    Raises:
        ValueError: a path is no folder.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"{path} is not a folder: give run folders, or a folder that holds some, such as runs")
        inside = [path] if (path / CONFIG).is_file() else sorted(p for p in path.iterdir() if (p / CONFIG).is_file())
        found |= dict.fromkeys(run.absolute() for run in inside)
    return list(found)


def flat_settings(config: Config) -> dict[str, str]:
    """`section.key` to value, as text."""

    def walk(prefix: str, value: Mapping[str, Any]) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, inner in value.items():
            key = f"{prefix}{name}"
            found |= walk(f"{key}.", inner) if isinstance(inner, Mapping) else {key: str(inner)}
        return found

    return walk("", asdict(config))


def differing_settings(runs: Sequence[RunFolder]) -> list[tuple[str, list[str]]]:
    """Settings that are not the same in all runs, with the value in each; names and folders of runs do not count."""
    settings = [flat_settings(run.config) if isinstance(run.config, Config) else {} for run in runs]
    keys = sorted({key for found in settings for key in found} - {"run.name", "run.dir"})
    rows = [(key, [found.get(key, "-") for found in settings]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]
