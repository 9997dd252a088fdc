"""The runs that a viewer shows: their folders, what lies in them now, and in what their settings differ."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from actors.tools.registry import toolbox_of
from cluster.folders import CONFIG, read_summary
from cluster.identity import flat_settings
from cluster.records.events import FILE as EVENTS
from cluster.records.events import LoggedEvent, read_log
from cluster.records.reading import read_metrics
from cluster.status.files import STALE_S, is_alive, lease_owner, read_snapshot
from cluster.status.table import Look
from cluster.viewer.index import EpisodeIndex
from cluster.viewer.pictures import Pictures
from configs.load import load_saved
from configs.paths import maybe_meant, resolve_paths
from configs.schema import Config
from judge.trust.check import Rate

METRICS = "metrics.jsonl"
T = TypeVar("T")


class RunFolder:
    """One run, for any number of threads. Everything is read anew when its file changes; nothing is ever written."""

    def __init__(self, name: str, path: Path, *, max_bytes: int | None = None) -> None:
        self.name = name
        self.path = path
        self._max_bytes = max_bytes
        self._kept: dict[str, tuple[object, Any]] = {}
        self._episodes: EpisodeIndex | None = None
        self._opening = threading.Lock()
        self._beat: tuple[int, int] | None = None
        self._beat_changed_at = float("-inf")

    @property
    def is_there(self) -> bool:
        """Whether it is still, or again, a run folder."""
        return _is_run(self.path)

    @property
    def episodes(self) -> EpisodeIndex:
        with self._opening:  # a browser asks for several things at once, and all episodes are read but once
            if self._episodes is None:
                self._episodes = EpisodeIndex(self.path, max_bytes=self._max_bytes)
            return self._episodes

    @property
    def pictures(self) -> Pictures:
        def make() -> Pictures:
            config = self.config
            return Pictures(config if isinstance(config, Config) else Config())

        return self._fresh("pictures", CONFIG, make)

    @property
    def metrics(self) -> list[dict[str, float]]:
        """Only figures that are finite: nothing else can be drawn or compared."""

        def read() -> list[dict[str, float]]:
            try:
                lines = read_metrics(self.path)
            except OSError:  # just removed, or for other eyes only
                return []
            return [{key: figure for key, figure in line.items() if math.isfinite(figure)} for line in lines]

        return self._fresh(METRICS, METRICS, read)

    @property
    def events(self) -> list[LoggedEvent]:
        def read() -> list[LoggedEvent]:
            try:
                return read_log(self.path)
            except OSError:
                return []

        return self._fresh(EVENTS, EVENTS, read)

    @property
    def config(self) -> Config | str:
        """Its settings, or why this version cannot read them."""

        def read() -> Config | str:
            try:
                return resolve_paths(load_saved(self.path / CONFIG)[0])
            except (ValueError, OSError) as error:
                return str(error)

        return self._fresh(CONFIG, CONFIG, read)

    @property
    def has_tool_choice(self) -> bool:
        """Whether its policy has more to choose from than the full view: by its settings, or by its episodes."""
        config = self.config
        if isinstance(config, Config) and not toolbox_of(config.rollout.tools).is_resize_alone:
            return True
        return self.episodes.shows_tool_choice

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

    def _fresh(self, name: str, file: str, make: Callable[[], T]) -> T:
        """What was made of a file, made anew where the file has changed."""
        stamp = _stamp(self.path / file)
        kept = self._kept.get(name)
        if kept is None or kept[0] != stamp:
            kept = self._kept[name] = (stamp, make())
        found: T = kept[1]
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
            self._runs = {name: run for name, run in self._runs.items() if run.is_there}
            known = {run.path for run in self._runs.values()}
            for path in find_runs([path for path in self._paths if path.is_dir()]):
                if path not in known:
                    base = path.name.encode("utf-8", "replace").decode()  # as it can stand in an address
                    name, number = base, 2
                    while name in self._runs:
                        name, number = f"{base}~{number}", number + 1
                    self._runs[name] = RunFolder(name, path)
            there = dict(self._runs)
        return dict(sorted(there.items(), key=lambda item: _stamp(item[1].path / METRICS), reverse=True))

    def get(self, name: str) -> RunFolder | None:
        found = self._runs.get(name)
        return found if found is not None and found.is_there else self.all().get(name)


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Run folders among the paths and directly below them; those that this user must not read are left out.

    Raises:
        ValueError: a path is no folder, or cannot be read.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            wanted = "give run folders, or a folder that holds some, such as runs"
            raise ValueError(f"{path} is not a folder: {wanted}{maybe_meant(path)}")
        try:
            inside = [path] if _is_run(path) else sorted(inner for inner in path.iterdir() if _is_run(inner))
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from error
        found |= dict.fromkeys(run.absolute() for run in inside)
    return list(found)


def _is_run(path: Path) -> bool:
    try:
        return (path / CONFIG).is_file()
    except OSError:
        return False


def differing_settings(runs: Sequence[RunFolder]) -> list[tuple[str, list[str]]]:
    """Settings that are not the same in all runs, with the value in each; names and folders of runs do not count."""
    configs = [run.config for run in runs]
    settings = [settings_text(config) if isinstance(config, Config) else {} for config in configs]
    keys = sorted({key for found in settings for key in found} - {"run.name", "run.dir"})
    rows = [(key, [found.get(key, "-") for found in settings]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def settings_text(config: Config) -> dict[str, str]:
    """`section.key` to value, as text."""
    return {key: str(value) for key, value in flat_settings(config).items()}
