"""`visionthink data check`: both sets, the contact sheet, and the lines that people read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from actors.images import ViewSpec
from cluster.datasets.bars import bars
from cluster.datasets.check import SetReport, leakage, problems_of, read_set
from cluster.datasets.sheet import write_sheet
from cluster.preflight.checks import data_problems, raise_all
from cluster.preflight.model_files import model_folder_problems
from cluster.shell import progress_bar
from configs.schema import Config


def check_sets(config: Config, *, limit: int | None, num_shown: int, sheet: Path) -> dict[str, Any]:
    """Everything about `data.train` and `data.heldout`, as the JSON object that `--json` prints.

    Raises:
        ValueError: the model's folder, from which the views' sizes follow, cannot be read.
        DataError: the training set cannot be read at all.
    """
    model = config.model
    broken = model_folder_problems("model.path", model.path, needs_weights=False)
    raise_all([*map(ValueError, broken), *data_problems("data.train", config.data.train, config.data.columns)])
    spec = ViewSpec.from_model(model)
    found: dict[str, Any] = {}
    problems: list[str] = []
    reports: dict[str, SetReport] = {}
    for split, path in (("train", config.data.train), ("heldout", config.data.heldout)):
        key, num = f"data.{split}", num_shown if split == "train" else 0
        if flaws := list(data_problems(key, path, config.data.columns)):
            problems += map(str, flaws)
            continue
        with progress_bar(key) as advance:
            report = read_set(path, config, spec, limit=limit, num_shown=num, advance=advance)
        reports[split], found[split] = report, report.figures()
        problems += problems_of(key, report, config)
    if len(reports) == 2:
        found["leakage"] = leakage(reports["train"], reports["heldout"])
        if found["leakage"]["num_pictures"]:
            problems.append(_leakage_line(found["leakage"]))
    if reports["train"].shown:
        write_sheet(sheet, reports["train"].shown, spec)
        found["sheet"] = str(sheet)
    return {**found, "problems": problems}


def _leakage_line(shared: Mapping[str, Any]) -> str:
    rows = ", ".join(f"train row {train} is held-out row {heldout}" for train, heldout in shared["rows"])
    return (
        f"leakage: {shared['num_samples']} held-out samples and {shared['num_pictures']} held-out pictures are in the "
        f"training set as well ({rows}): drop them from one of the two"
    )


def report_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The report for people, the verdict last."""
    for split in ("train", "heldout"):
        if split in found:
            yield from _set_lines(f"data.{split}", found[split])
    if "sheet" in found:
        yield f"contact sheet: {found['sheet']}"
    yield from (f"problem: {problem}" for problem in found["problems"])
    yield f"{len(found['problems'])} problems" if found["problems"] else "no problems"


def _set_lines(key: str, figures: Mapping[str, Any]) -> Iterator[str]:
    num_read = figures["num_readable"] + figures["num_unreadable"]
    of_all = "" if num_read == figures["num_rows"] else f" of {figures['num_rows']}"
    yield f"{key}: {figures['path']}"
    yield f"  {num_read}{of_all} rows read, {figures['num_unreadable']} unreadable, {figures['num_pictures']} pictures"
    for one in figures["unreadable"]:
        yield f"    {one['count']} x {one['example']} (row {', '.join(map(str, one['rows']))})"
    if figures["num_duplicates"]:
        rows = ", ".join(f"row {again} repeats row {first}" for first, again in figures["duplicates"])
        yield f"  {figures['num_duplicates']} duplicates, the same picture and question: {rows}"
    needs = figures["use_tool"]
    yield f"  full view needed: {needs['true']} yes, {needs['false']} no, {needs['unknown']} unknown"
    if figures["num_too_small"]:
        yield f"  {figures['num_too_small']} pictures are too small to be quartered: shown in full at once"
    if figures["num_readable"]:
        for view in ("full", "quarter"):
            tokens = figures[f"{view}_tokens"]
            title = f"visual tokens of the {view} view, mean {tokens['mean']:.0f}"
            yield from (f"  {line}" for line in bars(tokens["histogram"], title))
