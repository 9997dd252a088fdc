"""Finds what a crash or a damaged disk took from the records of a run that is resumed, and restores the ledger. Pure.

The order in which samples are drawn is known from seed and data set, so a lost line of the ledger follows from its
neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from cluster.records.files import append_line, write_atomically
from cluster.records.reading import read_lines, read_metrics

LEDGER = "ledger.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Samples that each step drew, and what is wrong with the file."""

    samples: dict[int, list[str]]
    problems: tuple[str, ...]


def repair_records(folder: Path, step: int, order: Sequence[str]) -> list[str]:
    """Restore the ledger of steps 1 to `step`; returns what was lost, for people.

    Args:
        order: the samples that these steps drew, in order.
    """
    metrics = {int(figures["step"]): figures for figures in read_metrics(folder)}
    entries = read_lines(folder / LEDGER)
    counts = {at: int(figures["groups/drawn"]) for at, figures in metrics.items() if "groups/drawn" in figures}
    ledger = repair_ledger(entries, step, order, counts)
    if ledger.problems:
        write_atomically(folder / LEDGER, "")
        for number in sorted(ledger.samples):
            append_line(folder / LEDGER, {"step": number, "samples": ledger.samples[number]})
    problems = list(ledger.problems)
    wanted = range(1, step + 1)
    if lost := [number for number in wanted if number not in metrics]:
        problems.append(f"metrics.jsonl has no line for {_named(lost)}: their figures are lost")
    names = {number: folder / "episodes" / f"step-{number:06d}.parquet" for number in wanted}
    if lost := [number for number, path in names.items() if not path.is_file()]:
        problems.append(f"episodes/ has no file for {_named(lost)}: their episodes are lost")
    return problems


def repair_ledger(
    entries: Sequence[Mapping[str, Any]], step: int, order: Sequence[str], counts: Mapping[int, int]
) -> Ledger:
    """The ledger of steps 1 to `step`, with lost lines restored from the data's order.

    Args:
        entries: the lines that can be read; of several of one step the first counts.
        counts: samples drawn by step, as far as known.
    """
    found: dict[int, list[str]] = {}
    for entry in entries:
        if 1 <= entry["step"] <= step and isinstance(entry.get("samples"), list):
            found.setdefault(entry["step"], entry["samples"])
    samples: dict[int, list[str]] = {}
    problems, position = [], 0
    for is_there, group in groupby(range(1, step + 1), key=found.__contains__):
        numbers = list(group)
        if is_there:
            for number in numbers:
                samples[number] = found[number]
                if list(order[position : position + len(found[number])]) != found[number]:
                    problems.append(f"{LEDGER}: the samples of step {number} are not those of the data's order")
                position += len(found[number])
            continue
        following = found.get(numbers[-1] + 1)
        end = _find(order, following[0], position) if following else len(order)
        restored = _split(order[position:end], numbers, counts)
        samples |= restored
        missing = "is restored from the data's order" if restored else "cannot be restored: their samples are unknown"
        problems.append(f"{LEDGER} has no line for {_named(numbers)}: it {missing}")
        position = end
    return Ledger(samples=samples, problems=tuple(problems))


def _split(drawn: Sequence[str], numbers: Sequence[int], counts: Mapping[int, int]) -> dict[int, list[str]]:
    """Samples of consecutive steps; empty where it is not known where one ends."""
    if len(numbers) == 1 and drawn:
        return {numbers[0]: list(drawn)}
    sizes = [counts.get(number, 0) for number in numbers]
    if 0 in sizes or sum(sizes) != len(drawn):
        return {}
    rest = iter(drawn)
    return {number: [next(rest) for _ in range(size)] for number, size in zip(numbers, sizes, strict=True)}


def _find(order: Sequence[str], sample: str, start: int) -> int:
    return next((at for at in range(start, len(order)) if order[at] == sample), start)


def _named(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:10])) + (" …" if len(numbers) > 10 else "")
    return f"step{'s' if len(numbers) > 1 else ''} {shown}"
