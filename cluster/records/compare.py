"""Several runs side by side: their curves in one figure, and their last held-out figures as a table.

Drawn on a plain `Figure`: no display, no global state, thread-safe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from actors.needs import NEED_NAMES
from cluster.records.reading import curve, read_metrics
from cluster.records.tool_metrics import shows_tool_choice

COLOURS = ("#2a6fbb", "#d9652b", "#2f9e6e", "#8a5fbf", "#b8912a", "#5b6672")
QUIET = COLOURS[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One metric over steps, a line for each run."""

    title: str
    key: str
    """In metrics.jsonl."""
    marks: tuple[tuple[float, str], ...] = ()
    """Horizontal reference lines: (value, label)."""
    is_share: bool = True
    """The axis spans at least 0 to 1."""
    optimum: str | None = None
    """Metric of the least that the figure can be, which is drawn thin where a run is of tools."""
    with_tool_choice: bool = False
    """Left out unless a run has more to choose from than the full view (`shows_tool_choice`)."""


VIEWS = ((1.0, "always full"), (0.25, "always quarter"))
PANELS = (
    Panel(title="Tool-call rate, needed", key="policy/ask_share_needed"),
    Panel(title="Tool-call rate, not needed", key="policy/ask_share_unneeded"),
    Panel(title="Tool-call rate", key="policy/ask_share"),
    Panel(title="Right tool, least of the kinds", key="policy/right_tool_share"),
    *(
        Panel(title=f"Right tool, {about} needed", key=f"policy/right_tool_share_{need}", with_tool_choice=True)
        for need, about in NEED_NAMES.items()
    ),
    Panel(title="Accuracy", key="reward/accuracy"),
    Panel(
        title="Visual-token ratio (1 = always full)",
        key="policy/visual_token_share",
        marks=VIEWS,
        optimum="policy/visual_token_optimum",
    ),
    Panel(title="Calls per episode", key="policy/calls_per_episode"),
    Panel(title="Visual tokens per call", key="policy/tokens_per_call", is_share=False),
    Panel(title="Held-out accuracy", key="heldout/accuracy"),
    Panel(title="Held-out visual-token ratio", key="heldout/visual_token_share"),
)
"""Runs without the metric are left out, and so is a panel of which no run has any."""
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
HELDOUT_TOOL_CHOICE = {
    "heldout/right_tool_share_quarter": "right tool, quarter view needed",
    "heldout/right_tool_share_region": "right tool, region needed",
    "heldout/right_tool_share_full": "right tool, full view needed",
    "heldout/visual_token_optimum": "optimum",
}
"""Further ones, where a run has more to choose from than the full view."""
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
    has_tool_choice = any(map(shows_tool_choice, metrics))
    panels = [
        panel
        for panel in PANELS
        if any(curve(each, panel.key)[0] for each in metrics) and (has_tool_choice or not panel.with_tool_choice)
    ]
    num_rows = -(-len(panels) // NUM_COLUMNS)
    figure = Figure(figsize=(4.2 * min(NUM_COLUMNS, len(panels)), 3.4 * num_rows), layout="constrained")
    for place, panel in enumerate(panels, 1):
        axes = figure.add_subplot(num_rows, min(NUM_COLUMNS, len(panels)), place)
        for number, (each, label) in enumerate(zip(metrics, labels, strict=True)):
            steps, figures = curve(each, panel.key)
            colour, line = _look(number)
            marker = "o" if len(steps) < 3 else None  # a line through one point is invisible
            if steps:
                axes.plot(steps, figures, color=colour, label=label, linewidth=1.8, linestyle=line, marker=marker)
            if has_tool_choice and panel.optimum:
                axes.plot(*curve(each, panel.optimum), color=colour, linewidth=0.9, linestyle=":")
        _style_axes(axes, panel)
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


def _style_axes(axes: Axes, panel: Panel) -> None:
    """Title, grid, reference lines, and the span of shares."""
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))  # by default, two: of one step, fractions
    for level, name in panel.marks:
        axes.axhline(level, color=QUIET, linewidth=1, linestyle="--")
        axes.annotate(
            name, (1, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7, color=QUIET
        )
    low, high = axes.get_ylim()
    if panel.is_share:
        axes.set_ylim(min(low, -0.02), max(high, 1.05))


def heldout_figures(runs: Sequence[Path]) -> dict[str, dict[str, float | None]]:
    """By label, the last held-out figures of each run; None where it has none."""
    metrics = [_metrics_of(run) for run in runs]
    columns = HELDOUT | (HELDOUT_TOOL_CHOICE if any(map(shows_tool_choice, metrics)) else {})
    found = {}
    for label, each in zip(labels_of(runs), metrics, strict=True):
        evaluated = [figures for figures in each if "heldout/accuracy" in figures]
        last = evaluated[-1] if evaluated else {}
        found[label] = {name: last.get(key) for key, name in columns.items()}
    return found


def heldout_tables(
    found: Mapping[str, Mapping[str, float | None]],
) -> list[tuple[tuple[str, ...], dict[str, tuple[float | None, ...]]]]:
    """Heads, and by label the cells below them: what every run has, and apart from that what a choice of tools adds."""
    names = next(iter(found.values()))
    of_choice = tuple(name for name in HELDOUT_TOOL_CHOICE.values() if name in names)
    parts = (tuple(name for name in names if name not in of_choice), of_choice)
    return [
        (heads, {label: tuple(figures[name] for name in heads) for label, figures in found.items()})
        for heads in parts
        if heads
    ]


def _metrics_of(run: Path) -> list[dict[str, float]]:
    metrics = read_metrics(run)
    if not any("reward/accuracy" in each for each in metrics):
        raise ValueError(f"{run} has no steps in its metrics.jsonl: give the folder of a run that finished a step")
    return metrics
