"""Reads the records of a run: metrics by step, and episodes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.episode import SampleRef

Row = dict[str, Any]


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """Metrics of each step in order, including `step`. Lines of the same step are merged, invalid lines ignored.

    The last line of a killed run may be truncated, and a run without a finished step has no file.
    """
    path = run_dir / "metrics.jsonl"
    steps: dict[float, dict[str, float]] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:  # also bytes that are not UTF-8
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int | float):
            figures = {str(key): float(value) for key, value in entry.items() if isinstance(value, int | float)}
            steps.setdefault(figures["step"], {}).update(figures)
    return [steps[step] for step in sorted(steps)]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of lines, without damaged ones. A file that is not there has none."""
    entries = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            entries.append(entry)
    return entries


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


def choose_episodes(rows: Sequence[Row], num_per_step: int) -> list[Row]:
    """Some episodes of each step, as diverse as possible.

    The first of each kind (full view needed, tool call, correct) come first, then the first of each further sample.
    """
    chosen: list[Row] = []
    for step in sorted({row["step"] for row in rows}):
        of_step = [row for row in rows if row["step"] == step]
        kinds = {_kind(row): row for row in reversed(of_step)}
        first_of_kind = sorted(kinds.values(), key=of_step.index)
        samples = {row["sample"]: row for row in reversed(of_step)}
        others = [row for row in sorted(samples.values(), key=of_step.index) if row not in first_of_kind]
        chosen += [*first_of_kind, *others][:num_per_step]
    return chosen


def _kind(row: Row) -> tuple[object, object, object]:
    return row.get("needs_full"), row.get("asked"), row.get("is_correct")
