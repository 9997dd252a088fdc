"""Figures of runs. Drawn on bare `Figure` objects: no display, no global state, safe in a thread."""

from __future__ import annotations

import base64
import io
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
    """One panel of a report: some figures over the steps."""

    title: str
    curves: tuple[tuple[str, str], ...]
    """(key in metrics.jsonl, label)."""
    is_share: bool = False
    """The axis runs from 0 to 1 at least."""
    is_log: bool = False
    marks: tuple[tuple[float, str], ...] = ()
    """Levels to compare with."""


CHARTS = (
    Chart(
        title="Reward",
        curves=(("reward/mean", "reward"), ("reward/accuracy", "right answers"), ("reward/format", "well formed")),
        is_share=True,
    ),
    Chart(
        title="Asks for the full image (share of episodes)",
        curves=(
            ("policy/ask_share", "all"),
            ("policy/ask_share_needed", "needs it"),
            ("policy/ask_share_unneeded", "does not need it"),
        ),
        is_share=True,
    ),
    Chart(
        title="Visual tokens against always-full",
        curves=(("policy/visual_token_share", "policy"),),
        is_share=True,
        marks=((1.0, "always full"), (0.25, "always quarter")),
    ),
    Chart(
        title="Seconds per stage",
        curves=(
            ("time/collect_s", "collect"),
            ("time/update_s", "update"),
            ("time/publish_s", "publish"),
            ("time/step_s", "whole step"),
        ),
    ),
    Chart(
        title="Groups",
        curves=(("groups/trained", "trained on"), ("groups/no_signal", "no signal"), ("groups/lost", "lost")),
    ),
    Chart(title="Loss", curves=(("learner/loss", "loss"),)),
    Chart(
        title="KL estimate (k3)",
        curves=(("learner/reference_kl", "to the reference"), ("learner/policy_kl", "to the sampler")),
    ),
    Chart(
        title="Gradient norm, entropy", curves=(("learner/grad_norm", "gradient norm"), ("learner/entropy", "entropy"))
    ),
    Chart(
        title="|log-probability by the engine - by the learner|",
        curves=(("learner/mismatch", "mean over sampled tokens"), ("learner/mismatch_max", "largest")),
        is_log=True,
    ),
)
PENALTY_CHARTS = (
    Chart(title="Share that asks for the full image", curves=(("policy/ask_share", ""),), is_share=True),
    Chart(title="Right answers (share of episodes)", curves=(("reward/accuracy", ""),), is_share=True),
)


def chart_svg(chart: Chart, metrics: Sequence[dict[str, float]]) -> str | None:
    """One chart as an SVG data URI; None where the run has none of its figures."""
    figure = Figure(figsize=(5.2, 3.0), layout="constrained")
    axes = figure.add_subplot()
    if not draw_chart(axes, chart, metrics):
        return None
    picture = io.BytesIO()
    figure.savefig(picture, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(picture.getvalue()).decode("ascii")


def draw_chart(axes: Axes, chart: Chart, metrics: Sequence[dict[str, float]]) -> bool:
    """Draw what there is of a chart; False where there is nothing."""
    is_drawn = False
    for (key, label), colour in zip(chart.curves, COLOURS, strict=False):
        is_drawn |= _draw_curve(axes, metrics, key, label, colour)
    if is_drawn:
        _dress(axes, chart)
        if len(chart.curves) > 1:
            axes.legend(fontsize=8, frameon=False)
    if chart.is_log and any(figure > 0 for key, _ in chart.curves for figure in curve(metrics, key)[1]):
        # Figures of exactly 0 have no place on a logarithmic axis: they are left out.
        axes.set_yscale("log", nonpositive="mask")
    return is_drawn


def plot_penalties(run_dirs: Sequence[Path], labels: Sequence[str], out_png: Path) -> None:
    """Several runs in one figure: share that asks and right answers over the steps (Fig. 3a of the paper).

    Args:
        run_dirs: folders of runs, e.g. one per penalty.
        labels: one name per run, for the legend.
        out_png: where the picture goes.

    Raises:
        ValueError: a run has no figures yet, or labels and runs differ in number.
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
                raise ValueError(f"{run_dir} has no {key} in its metrics.jsonl: name the folder of a run that trained")
    for axes, chart in zip(panels, PENALTY_CHARTS, strict=True):
        _dress(axes, chart)
    panels[0].legend(fontsize=9, frameon=False)
    out_png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out_png, format="png", dpi=160)


def _draw_curve(axes: Axes, metrics: Sequence[dict[str, float]], key: str, label: str, colour: str) -> bool:
    steps, figures = curve(metrics, key)
    if steps:
        # A run of one step is a dot: a line through one point would not show.
        axes.plot(steps, figures, color=colour, label=label, linewidth=1.8, marker="o" if len(steps) < 3 else None)
    return bool(steps)


def _dress(axes: Axes, chart: Chart) -> None:
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
