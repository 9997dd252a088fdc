"""The comparisons as one picture: share of always-full's score, tool calls, and cost, per suite with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cluster.evaluation.comparison import Comparison
from cluster.records.compare import COLOURS

PANELS = (
    (
        "Score against always-full (Table 2)",
        {"share_of_full": "policy", "share_of_full_quarter": "always quarter"},
        1.0,
    ),
    ("Tool calls (Fig. 4)", {"ask_share": "all", "over_asking": "over-asking", "under_asking": "under-asking"}, None),
    (
        "Cost against always-full (Fig. 5)",
        {"visual_token_share": "visual tokens", "generated_token_share": "generated tokens", "time_share": "time"},
        1.0,
    ),
)
"""Title, bars by name, and a line at which the policy equals always-full."""


def draw_comparisons(comparisons: Sequence[Comparison], out: Path) -> None:
    """Write a PNG."""
    figure = Figure(figsize=(13.0, 1.6 + 0.75 * len(comparisons)), layout="constrained")
    for place, (title, bars, level) in enumerate(PANELS, start=1):
        axes = figure.add_subplot(1, len(PANELS), place)
        _draw_bars(axes, comparisons, bars)
        axes.set_title(title, fontsize=10, loc="left")
        if level is not None:
            axes.axvline(level, color="#5b6672", linewidth=1, linestyle="--")
    figure.savefig(out, format="png", dpi=140)


def _draw_bars(axes: Axes, comparisons: Sequence[Comparison], bars: dict[str, str]) -> None:
    height = 0.8 / len(bars)
    for number, (name, label) in enumerate(bars.items()):
        found = [(at, one.estimates[name]) for at, one in enumerate(comparisons) if name in one.estimates]
        for at, estimate in found:
            if estimate.value is None or estimate.low is None or estimate.high is None:
                continue
            y = at + (number - (len(bars) - 1) / 2) * height
            reach = [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]
            axes.barh(y, estimate.value, height * 0.9, color=COLOURS[number], xerr=reach, ecolor="#333333", capsize=2)
        axes.barh(0, 0, color=COLOURS[number], label=label)
    axes.set_yticks(range(len(comparisons)), [f"{one.suite} (n={one.num_compared})" for one in comparisons], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25, axis="x")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)
