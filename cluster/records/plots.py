"""Plots of runs, drawn on plain `Figure` objects: no display, no global state, thread-safe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cluster.records.reading import curve, read_metrics

COLOURS = ("#2a6fbb", "#d9652b", "#2f9e6e", "#8a5fbf", "#b8912a", "#5b6672")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One panel: a metric over steps."""

    title: str
    curves: tuple[tuple[str, str], ...]
    """(key in metrics.jsonl, label)."""
    is_share: bool = False
    """The y axis spans at least 0 to 1."""


PENALTY_CHARTS = (
    Chart(title="Tool-call rate", curves=(("policy/ask_share", ""),), is_share=True),
    Chart(title="Accuracy", curves=(("reward/accuracy", ""),), is_share=True),
)


def plot_penalties(run_dirs: Sequence[Path], labels: Sequence[str], out_png: Path) -> None:
    """Several runs in one figure: tool-call rate and accuracy over steps (Fig. 3a of the paper).

    Args:
        run_dirs: folders of runs, e.g. one per penalty.
        labels: one name per run, for the legend.
        out_png: output file.

    Raises:
        ValueError: a run has no metrics yet, or the numbers of labels and runs differ.
    """
    if len(run_dirs) != len(labels):
        raise ValueError(f"{len(labels)} labels for {len(run_dirs)} runs: give one per run")
    figure = Figure(figsize=(10.0, 3.8), layout="constrained")
    panels = [figure.add_subplot(1, len(PENALTY_CHARTS), place) for place in range(1, len(PENALTY_CHARTS) + 1)]
    for number, (run_dir, label) in enumerate(zip(run_dirs, labels, strict=True)):
        metrics = read_metrics(Path(run_dir))
        for axes, chart in zip(panels, PENALTY_CHARTS, strict=True):
            key, _ = chart.curves[0]
            if not _draw_curve(axes, metrics, key, label, COLOURS[number % len(COLOURS)]):
                raise ValueError(
                    f"{run_dir} has no {key} in its metrics.jsonl: give the folder of a run that finished a step"
                )
    for axes, chart in zip(panels, PENALTY_CHARTS, strict=True):
        _style_axes(axes, chart)
    panels[0].legend(fontsize=9, frameon=False)
    out_png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out_png, format="png", dpi=160)


def _draw_curve(axes: Axes, metrics: Sequence[dict[str, float]], key: str, label: str, colour: str) -> bool:
    steps, figures = curve(metrics, key)
    if steps:
        # One or two points need markers: a line through one point is invisible.
        axes.plot(steps, figures, color=colour, label=label, linewidth=1.8, marker="o" if len(steps) < 3 else None)
    return bool(steps)


def _style_axes(axes: Axes, chart: Chart) -> None:
    axes.set_title(chart.title, fontsize=10, loc="left")
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if chart.is_share:
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, -0.02), max(high, 1.05))
