"""Reads the records of a run: metrics by step, and episodes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.episode import SampleRef

Row = dict[str, Any]


def read_objects(path: Path, *, last: int | None = None) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file of lines, at most those of the `last` lines. A file that is not there has none.

    Damaged lines are left out: the last one of a killed run may be truncated, and a disk may return anything.
    """
    lines = path.read_bytes().splitlines() if path.is_file() else []
    for line in lines if last is None else lines[-last:]:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):  # ValueError: also bytes that are not UTF-8
            continue
        if isinstance(entry, dict):
            yield entry


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """Metrics of each step in order, including `step`. Lines of the same step are merged, those without one ignored.

    A metric may be NaN or infinite, such as the loss of a skipped update; a step is finite.
    """
    steps: dict[float, dict[str, float]] = {}
    for entry in read_objects(run_dir / "metrics.jsonl"):
        figures = {key: number for key, value in entry.items() if (number := _number(value)) is not None}
        if math.isfinite(figures.get("step", math.nan)):
            steps.setdefault(figures["step"], {}).update(figures)
    return [steps[step] for step in sorted(steps)]


def _number(value: object) -> float | None:
    try:
        return float(value) if isinstance(value, int | float) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of lines that have a step."""
    return [entry for entry in read_objects(path) if isinstance(entry.get("step"), int)]


def read_skips(run_dir: Path, dataset: str, step: int) -> tuple[int, list[tuple[SampleRef, str]]]:
    """Rows read in the steps up to this one: the number of usable ones, and the others with the reason."""
    entries = read_lines(run_dir / "lost.jsonl")
    skipped = [
        (SampleRef(dataset=dataset, row=entry["row"], uid=entry["sample"]), str(entry["reason"]))
        for entry in entries
        if entry["step"] <= step and isinstance(entry.get("row"), int)
    ]
    of_steps = [figures for figures in read_metrics(run_dir) if figures["step"] <= step]
    lost = ("groups/lost", "groups/skipped")
    num_usable = sum(f.get("groups/drawn", 0.0) - sum(f.get(name, 0.0) for name in lost) for f in of_steps)
    return int(num_usable), skipped


def curve(metrics: Sequence[Mapping[str, float]], key: str) -> tuple[list[float], list[float]]:
    """(steps, values) of the steps that have this metric."""
    points = [(figures["step"], figures[key]) for figures in metrics if key in figures]
    return [step for step, _ in points], [figure for _, figure in points]
