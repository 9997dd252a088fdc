"""Several runs side by side: their curves in one figure, and their last held-out figures as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cluster.records.plots import COLOURS, Chart, draw_curve, style_axes
from cluster.records.reading import curve, read_metrics

CHARTS = (
    Chart(title="Tool-call rate, full view needed", curves=(("policy/ask_share_needed", ""),), is_share=True),
    Chart(title="Tool-call rate, full view not needed", curves=(("policy/ask_share_unneeded", ""),), is_share=True),
    Chart(title="Tool-call rate", curves=(("policy/ask_share", ""),), is_share=True),
    Chart(title="Right tool, least of the kinds", curves=(("policy/right_tool_share", ""),), is_share=True),
    Chart(title="Accuracy", curves=(("reward/accuracy", ""),), is_share=True),
    Chart(
        title="Visual-token ratio (1 = always full)",
        curves=(("policy/visual_token_share", ""),),
        is_share=True,
        marks=((1.0, "always full"), (0.25, "always quarter")),
    ),
    Chart(title="Held-out accuracy", curves=(("heldout/accuracy", ""),), is_share=True),
    Chart(title="Held-out visual-token ratio", curves=(("heldout/visual_token_share", ""),), is_share=True),
)
"""One metric each; runs without it are left out, and so is a chart of which no run has any."""
HELDOUT = {
    "step": "step",
    "heldout/accuracy": "accuracy",
    "heldout/accuracy_full": "always full",
    "heldout/accuracy_quarter": "always quarter",
    "heldout/ask_share_needed": "tool calls, needed",
    "heldout/ask_share_unneeded": "tool calls, not needed",
    "heldout/right_tool_share": "right tool",
    "heldout/visual_token_share": "visual-token ratio",
}
"""Columns of the table, by metric."""
NUM_COLUMNS = 4
LINES = ("-", "--", ":", "-.")


def labels_of(runs: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart.

    Raises:
        ValueError: a run is given twice.
    """
    parts = [run.absolute().resolve().parts for run in runs]
    if len(set(parts)) < len(parts):
        twice = next(run for run, own in zip(runs, parts, strict=True) if parts.count(own) > 1)
        raise ValueError(f"{twice} is given twice: give each run once")
    for length in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(each[-length:]) for each in parts]
        if len(set(labels)) == len(labels):
            return labels
    raise AssertionError("different paths have different ends")


def plot_runs(runs: Sequence[Path], out: Path) -> None:
    """Draw the runs' curves into a PNG, a panel per metric.

    Raises:
        ValueError: a run has finished no step, or is given twice.
    """
    labels = labels_of(runs)
    metrics = [_metrics_of(run) for run in runs]
    charts = [chart for chart in CHARTS if any(curve(each, chart.curves[0][0])[0] for each in metrics)]
    num_rows = -(-len(charts) // NUM_COLUMNS)
    figure = Figure(figsize=(4.2 * min(NUM_COLUMNS, len(charts)), 3.4 * num_rows), layout="constrained")
    for place, chart in enumerate(charts, 1):
        axes = figure.add_subplot(num_rows, min(NUM_COLUMNS, len(charts)), place)
        for number, (each, label) in enumerate(zip(metrics, labels, strict=True)):
            draw_curve(axes, each, chart.curves[0][0], label, *_look(number))
        style_axes(axes, chart)
        if place == 1:
            looks = [_look(number) for number in range(len(labels))]
            handles = [
                Line2D([], [], color=c, linestyle=s, label=name) for name, (c, s) in zip(labels, looks, strict=True)
            ]
            figure.legend(handles=handles, loc="outside upper center", ncols=len(labels), fontsize=9, frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, format="png", dpi=160)


def _look(number: int) -> tuple[str, str]:
    """Colour and line style of a run: a style for as many runs as there are colours."""
    return COLOURS[number % len(COLOURS)], LINES[number // len(COLOURS) % len(LINES)]


def heldout_figures(runs: Sequence[Path]) -> dict[str, dict[str, float | None]]:
    """By label, the last held-out figures of each run; None where it has none."""
    found = {}
    for label, run in zip(labels_of(runs), runs, strict=True):
        evaluated = [each for each in _metrics_of(run) if "heldout/accuracy" in each]
        last = evaluated[-1] if evaluated else {}
        found[label] = {name: last.get(key) for key, name in HELDOUT.items()}
    return found


def _metrics_of(run: Path) -> list[dict[str, float]]:
    metrics = read_metrics(run)
    if not any("reward/accuracy" in each for each in metrics):
        raise ValueError(f"{run} has no steps in its metrics.jsonl: give the folder of a run that finished a step")
    return metrics
