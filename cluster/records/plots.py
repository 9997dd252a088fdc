"""Plots of runs, drawn on plain `Figure` objects: no display, no global state, thread-safe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cluster.records.reading import curve

COLOURS = ("#2a6fbb", "#d9652b", "#2f9e6e", "#8a5fbf", "#b8912a", "#5b6672")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One panel of a report: metrics over steps."""

    title: str
    curves: tuple[tuple[str, str], ...]
    """(key in metrics.jsonl, label)."""
    is_share: bool = False
    """The y axis spans at least 0 to 1."""
    is_log: bool = False
    marks: tuple[tuple[float, str], ...] = ()
    """Horizontal reference lines: (value, label)."""
    shows_events: bool = False
    """Vertical lines where members left or came back."""


def draw_curve(
    axes: Axes, metrics: Sequence[dict[str, float]], key: str, label: str, colour: str, line: str = "-"
) -> bool:
    """Draw a metric over steps; False where no step has it."""
    steps, figures = curve(metrics, key)
    if steps:
        # One or two points need markers: a line through one point is invisible.
        marker = "o" if len(steps) < 3 else None
        axes.plot(steps, figures, color=colour, label=label, linewidth=1.8, linestyle=line, marker=marker)
    return bool(steps)


def style_axes(axes: Axes, chart: Chart) -> None:
    """Title, grid and reference lines of a chart."""
    axes.set_title(chart.title, fontsize=10, loc="left")
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for level, name in chart.marks:
        axes.axhline(level, color="#5b6672", linewidth=1, linestyle="--")
        axes.annotate(
            name, (1, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7, color="#5b6672"
        )
    if chart.is_share:
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, -0.02), max(high, 1.05))
