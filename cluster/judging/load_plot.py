"""The picture of a load test: replicas, queue wait and throughput over one axis of time."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cluster.judging.arrivals import per_bin
from cluster.judging.load import LoadTrace
from cluster.records.plots import COLOURS
from judge.trust.check import percentile

BIN_S = 1.0
GREY = "#5b6672"


def plot_load(trace: LoadTrace, out_png: Path) -> None:
    """Draw a load test as a PNG of three panels.

    Args:
        out_png: where the picture goes; its folder is made.
    """
    figure = Figure(figsize=(9.0, 7.2), layout="constrained")
    replicas, wait, rate = figure.subplots(3, 1, sharex=True)
    _draw_replicas(replicas, trace)
    _draw_waits(wait, trace)
    _draw_rates(rate, trace)
    for axes in (replicas, wait, rate):
        axes.axvspan(trace.plan.busy_from_s, trace.plan.busy_until_s, color=COLOURS[4], alpha=0.09, linewidth=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
    rate.set_xlabel("seconds (shaded: the busy phase)", fontsize=9)
    rate.set_xlim(0, max(trace.plan.seconds, max((call.done_s for call in trace.calls), default=0.0)))
    out_png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out_png, format="png", dpi=110)


def _draw_replicas(axes: Axes, trace: LoadTrace) -> None:
    at_s = [sample.at_s for sample in trace.samples]
    running = [sample.num_running for sample in trace.samples]
    all_up = [sample.num_running + sample.num_starting for sample in trace.samples]
    axes.fill_between(at_s, running, all_up, step="post", color=COLOURS[0], alpha=0.25, linewidth=0, label="starting")
    axes.step(at_s, running, where="post", color=COLOURS[0], linewidth=2, label="running")
    edges, sizes, began_s = [0.0], [], 0.0
    for phase in trace.plan.phases:
        began_s += phase.seconds
        edges.append(began_s)
        sizes.append(trace.plan.size_of(phase))
    axes.stairs(sizes, edges, baseline=None, color=COLOURS[1], linestyle="--", linewidth=1.8, label="right size")
    axes.set_ylim(0, max([*all_up, *sizes, 1]) + 0.6)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("Replicas of the judge pool", fontsize=10, loc="left")
    axes.legend(fontsize=9, frameon=False, loc="upper right")


def _draw_waits(axes: Axes, trace: LoadTrace) -> None:
    milliseconds = [1000 * call.wait_s for call in trace.calls]
    sent = [call.sent_s for call in trace.calls]
    axes.scatter(sent, milliseconds, s=7, color=COLOURS[0], alpha=0.3, linewidth=0, label="one call")
    bins: dict[int, list[float]] = {}
    for at_s, wait in zip(sent, milliseconds, strict=True):
        bins.setdefault(int(at_s / BIN_S), []).append(wait)
    for share, colour in ((0.5, COLOURS[2]), (0.95, COLOURS[1])):
        centres = [(number + 0.5) * BIN_S for number in sorted(bins)]
        levels = [percentile(sorted(bins[number]), share) for number in sorted(bins)]
        axes.plot(centres, levels, color=colour, linewidth=1.8, label=f"p{100 * share:.0f} of a second")
    if any(wait > 0 for wait in milliseconds):
        axes.set_yscale("log", nonpositive="mask")
    axes.set_title("Wait of a call: on the way and in queues, ms", fontsize=10, loc="left")
    axes.legend(fontsize=9, frameon=False, loc="upper right")


def _draw_rates(axes: Axes, trace: LoadTrace) -> None:
    num_bins = int(trace.plan.seconds / BIN_S)
    centres = [(number + 0.5) * BIN_S for number in range(num_bins)]
    arrivals, size = trace.plan.arrivals, trace.plan.group_size
    asked = per_bin(
        [arrival.at_s for arrival in arrivals], [size] * len(arrivals), width_s=BIN_S, end_s=num_bins * BIN_S
    )
    given = per_bin(
        [call.done_s for call in trace.calls],
        [call.num_verdicts for call in trace.calls],
        width_s=BIN_S,
        end_s=num_bins * BIN_S,
    )
    axes.step(centres, asked, where="mid", color=GREY, linewidth=1.4, label="answers sent")
    axes.step(centres, given, where="mid", color=COLOURS[0], linewidth=2, label="verdicts back")
    axes.set_ylim(bottom=0)
    axes.set_title("Throughput, per second", fontsize=10, loc="left")
    axes.legend(fontsize=9, frameon=False, loc="upper right")
