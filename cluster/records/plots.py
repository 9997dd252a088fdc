"""Plots of runs, drawn on plain `Figure` objects: no display, no global state, thread-safe."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cluster.records.events import Event
from cluster.records.reading import curve

COLOURS = ("#2a6fbb", "#d9652b", "#2f9e6e", "#8a5fbf", "#b8912a", "#5b6672")
EVENT_COLOURS = {
    "leave": "#c0392b",
    "wedged": "#c0392b",
    "preempted": "#d9652b",
    "restart": "#b8912a",
    "reform": "#8a5fbf",
    "replay": "#8a5fbf",
    "join": "#2f9e6e",
    "scale": "#2a6fbb",
}
"""Kinds of events that are drawn."""


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


CHARTS = (
    Chart(
        title="Reward",
        curves=(("reward/mean", "reward"), ("reward/accuracy", "accuracy"), ("reward/format", "well formed")),
        is_share=True,
    ),
    Chart(
        title="Tool-call rate",
        curves=(
            ("policy/ask_share", "all"),
            ("policy/ask_share_needed", "full view needed"),
            ("policy/ask_share_unneeded", "full view not needed"),
        ),
        is_share=True,
    ),
    Chart(
        title="Visual-token ratio (1 = always full)",
        curves=(("policy/visual_token_share", "policy"),),
        is_share=True,
        marks=((1.0, "always full"), (0.25, "always quarter")),
    ),
    Chart(
        title="Seconds per stage",
        curves=(
            ("time/collect_s", "rollout"),
            ("time/update_s", "update"),
            ("time/update_wait_s", "wait for the update"),
            ("time/publish_s", "weight sync"),
            ("time/step_s", "step"),
        ),
    ),
    Chart(
        title="Useful time (1 = no start, save, fault or repetition)",
        curves=(("run/useful_time", "since the start"),),
        is_share=True,
        shows_events=True,
    ),
    Chart(
        title="Groups",
        curves=(("groups/trained", "trained"), ("groups/no_signal", "zero variance"), ("groups/lost", "lost")),
    ),
    Chart(title="Loss", curves=(("learner/loss", "loss"),)),
    Chart(
        title="KL divergence (k3 estimator)",
        curves=(("learner/reference_kl", "to the reference"), ("learner/policy_kl", "to the sampler")),
    ),
    Chart(
        title="Gradient norm, entropy", curves=(("learner/grad_norm", "gradient norm"), ("learner/entropy", "entropy"))
    ),
    Chart(
        title="Logprob mismatch |engine - learner|",
        curves=(("learner/mismatch", "mean over sampled tokens"), ("learner/mismatch_max", "maximum")),
        is_log=True,
    ),
)


def chart_svg(chart: Chart, metrics: Sequence[dict[str, float]], events: Sequence[Event] = ()) -> str | None:
    """One chart as an SVG data URI; None where the run has none of its metrics."""
    figure = Figure(figsize=(5.2, 3.0), layout="constrained")
    axes = figure.add_subplot()
    if not draw_chart(axes, chart, metrics):
        return None
    if chart.shows_events:
        _draw_events(axes, events)
    picture = io.BytesIO()
    figure.savefig(picture, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(picture.getvalue()).decode("ascii")


def draw_chart(axes: Axes, chart: Chart, metrics: Sequence[dict[str, float]]) -> bool:
    """Draw the curves that have data; False where none has."""
    is_drawn = False
    for (key, label), colour in zip(chart.curves, COLOURS, strict=False):
        is_drawn |= draw_curve(axes, metrics, key, label, colour)
    if is_drawn:
        style_axes(axes, chart)
        if len(chart.curves) > 1:
            axes.legend(fontsize=8, frameon=False)
    if chart.is_log and any(figure > 0 for key, _ in chart.curves for figure in curve(metrics, key)[1]):
        # Values of exactly 0 cannot be shown on a logarithmic axis: they are masked.
        axes.set_yscale("log", nonpositive="mask")
    return is_drawn


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


def _draw_events(axes: Axes, events: Sequence[Event]) -> None:
    """One line per step and kind, as several members may leave in one step."""
    marks = {(event.step, event.kind) for event in events if event.step is not None and event.kind in EVENT_COLOURS}
    kinds = [kind for kind in EVENT_COLOURS if any(kind == of for _, of in marks)]
    for kind in kinds:
        for step in sorted(at for at, of in marks if of == kind and at is not None):
            axes.axvline(step, color=EVENT_COLOURS[kind], linewidth=1.2, linestyle=":", zorder=0)
        axes.plot([], [], color=EVENT_COLOURS[kind], linewidth=1.2, linestyle=":", label=kind)
    if kinds:
        axes.legend(fontsize=8, frameon=False)


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
