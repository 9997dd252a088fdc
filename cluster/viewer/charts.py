"""Charts as geometry, which a template draws as SVG: lines over steps, and accuracy against visual tokens. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from actors.needs import NEED_NAMES
from actors.tools.registry import TOOLS
from cluster.records.events import Event
from cluster.records.reading import curve
from cluster.records.tool_metrics import shows_tool_choice

WIDTH, HEIGHT = 440, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 26
MAX_POINTS = 800
"""A longer line is thinned: of each stretch the lowest and the highest point stay."""
NUM_TICKS = 5
NUM_COLOURS, NUM_DASHES = 6, 3
EXTREME = 1e100
EVENTS_DRAWN = ("leave", "wedged", "preempted", "restart", "reform", "replay", "join", "scale")


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One chart: metrics over steps."""

    title: str
    curves: tuple[tuple[str, str], ...]
    """(key in metrics.jsonl, label)."""
    place: str = "curves"
    """The page that shows it."""
    is_share: bool = False
    """The axis spans at least 0 to 1."""
    is_log: bool = False
    marks: tuple[tuple[float, str], ...] = ()
    """Horizontal reference lines: (value, label)."""
    shows_events: bool = False
    compares: bool = False
    """Of a run that has only one of the metrics, the chart would say nothing."""
    with_tool_choice: tuple[tuple[str, str], ...] = ()
    """Further curves, where a run has more to choose from than the full view (`shows_tool_choice`)."""


def _panel(
    title: str, *curves: str, with_tool_choice: Sequence[str] = (), place: str = "curves", **options: Any
) -> Panel:
    """Curves as `key label`."""
    return Panel(title=title, curves=_pairs(curves), with_tool_choice=_pairs(with_tool_choice), place=place, **options)


def _pairs(curves: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple((key, label) for key, label in (curve.split(" ", 1) for curve in curves))


ASKS = ("policy/ask_share all", "policy/ask_share_needed needed", "policy/ask_share_unneeded not needed")
RATIOS = ("policy/visual_token_share rollouts", "heldout/visual_token_share held-out")
STAGES = ("time/step_s step", "time/collect_s rollout", "time/update_s update", "time/publish_s weight sync")
CALLS = ("judge/llm_calls calls", "judge/cache_hits from the cache", "judge/retries retries")
REWARDS = (
    "reward/mean reward", "reward/penalty penalty", "reward/box box", "reward/area area", "reward/budget budget",
)  # fmt: skip
VIEWS = ((1.0, "always full"), (0.25, "always quarter"))
GAINS = (
    "heldout/tool_gain gain", "heldout/tool_gain_by_call won by calls", "heldout/tool_harm_by_call lost by calls",
)  # fmt: skip
OPTIMA = ("policy/visual_token_optimum rollouts' optimum", "heldout/visual_token_optimum held-out optimum")
RIGHT_TOOL = tuple(f"policy/right_tool_share_{need} {about} needed" for need, about in NEED_NAMES.items())
BY_TOOL = tuple(f"policy/tool_share/{name} {name}" for name in TOOLS)
PANELS = (
    _panel("Accuracy and format", "reward/accuracy accuracy", "reward/format well formed", is_share=True),
    _panel("Tool-call rate", *ASKS, is_share=True),
    _panel("Visual-token ratio", *RATIOS, with_tool_choice=OPTIMA, is_share=True, marks=VIEWS),
    _panel("Right tool, by what is needed", with_tool_choice=RIGHT_TOOL, is_share=True),
    _panel("Calls per episode", "policy/calls_per_episode calls", "policy/refused_per_episode refused"),
    _panel("Visual tokens per call", "policy/tokens_per_call tokens"),
    _panel("Calls by tool", *BY_TOOL, is_share=True, compares=True),
    _panel("Accuracy through tools, held-out", *GAINS),
    _panel("Reward", *REWARDS),
    _panel("Groups", "groups/trained trained", "groups/no_signal zero variance", "groups/lost lost"),
    _panel("Sampled tokens per episode", "policy/completion_tokens tokens"),
    _panel("KL divergence (k3)", "learner/reference_kl to the reference", "learner/policy_kl to the sampler"),
    _panel("Entropy and gradient norm", "learner/entropy entropy", "learner/grad_norm gradient norm"),
    _panel("Loss", "learner/loss loss"),
    _panel("Logprob mismatch, engine to learner", "learner/mismatch mean", "learner/mismatch_max maximum", is_log=True),
    _panel("Seconds per stage", *STAGES, place="system"),
    _panel("Useful time", "run/useful_time since the start", place="system", is_share=True, shows_events=True),
    _panel("Staleness of the oldest token (steps)", "policy/staleness_max maximum", place="system"),
    _panel("Peak memory of a rank (GiB)", "learner/peak_memory_gib GiB", place="system"),
    _panel("LLM calls", *CALLS, place="judge"),
    _panel("Without a verdict", "episodes/unscored episodes", "judge/throttled throttled (429)", place="judge"),
    _panel("Seconds to a verdict", "judge/mean_s mean", "judge/queue_s in the queue", place="judge"),
    _panel("Wrong canaries that passed", "judge/canary_false_positive_rate rate", place="judge", is_share=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A drawn curve."""

    run: str
    label: str
    colour: int
    dash: int
    path: str
    dots: tuple[tuple[float, float], ...]
    """Where there are few enough to be seen."""
    points: tuple[tuple[float, float, float, float], ...]
    """(step, value, x, y): what the pointer reads off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    marks: tuple[tuple[float, str], ...] = ()
    events: tuple[tuple[float, str], ...] = ()
    """Where members left or came back: (x, kinds)."""


Metrics = Sequence[Mapping[str, float]]


def line_charts(runs: Mapping[str, Metrics], place: str, events: Sequence[Event] = ()) -> list[Chart]:
    """The charts of a page with all runs on one axis of steps; those without a value are left out.

    Of several runs each has its colour and each metric its dash, which changes once all colours are used; of one run
    each metric has its colour. Events are marked where they cost time.
    """
    steps = [figures["step"] for metrics in runs.values() for figures in metrics if abs(figures["step"]) < EXTREME]
    x_range = (min(steps, default=0.0), max(steps, default=1.0))
    panels = [panel for panel in PANELS if panel.place == place]
    if any(shows_tool_choice(metrics) for metrics in runs.values()):
        panels = [replace(panel, curves=panel.curves + panel.with_tool_choice) for panel in panels]
    return [chart for panel in panels if (chart := _chart(panel, runs, x_range, events))]


def _chart(
    panel: Panel, runs: Mapping[str, Metrics], x_range: tuple[float, float], events: Sequence[Event]
) -> Chart | None:
    found = []
    num_metrics = sum(
        any(key in figures for metrics in runs.values() for figures in metrics) for key, _ in panel.curves
    )
    for r, (run, metrics) in enumerate(runs.items()):
        for c, (key, label) in enumerate(panel.curves):
            points = [
                (x, y) for x, y in zip(*curve(metrics, key), strict=True) if abs(x) < EXTREME and _fits(y, panel.is_log)
            ]
            if points:
                name = label if len(runs) == 1 else f"{run}: {label}" if len(panel.curves) > 1 else run
                found.append((run, name, points, (c, 0) if len(runs) == 1 else (r, c)))
    if not found or (panel.compares and num_metrics < 2):
        return None
    low, high = _span([y for _, _, points, _ in found for _, y in points], panel)
    ticks = log_ticks(low, high) if panel.is_log else ticks_of(low, high)

    def y_of(value: float) -> float:
        a, b, v = (math.log10(n) for n in (low, high, value)) if panel.is_log else (low, high, value)
        return round(TOP + (b - v) / (b - a) * (HEIGHT - TOP - BOTTOM), 1)

    def x_of(step: float) -> float:
        return round(LEFT + (step - x_range[0]) / max(1e-9, x_range[1] - x_range[0]) * (WIDTH - LEFT - RIGHT), 1)

    lines = []
    for run, name, points, (colour, dash) in found:
        placed = tuple((x, y, x_of(x), y_of(y)) for x, y in thin(points, MAX_POINTS))
        path = "M" + "L".join(f"{x},{y}" for _, _, x, y in placed)
        dots = tuple((x, y) for _, _, x, y in placed) if len(placed) <= 40 else ()
        lines.append(
            Line(
                run=run,
                label=name,
                colour=colour % NUM_COLOURS,
                dash=(dash + colour // NUM_COLOURS) % NUM_DASHES,
                path=path,
                dots=dots,
                points=placed,
            )
        )
    return Chart(
        title=panel.title,
        lines=tuple(lines),
        x_ticks=tuple((x_of(x), f"{x:g}") for x in ticks_of(*x_range) if x == int(x)),
        y_ticks=tuple((y_of(y), tick(y)) for y in ticks),
        marks=tuple((y_of(y), label) for y, label in panel.marks if low <= y <= high),
        events=_event_marks(events, x_of) if panel.shows_events else (),
    )


def _event_marks(events: Sequence[Event], x_of: Callable[[float], float]) -> tuple[tuple[float, str], ...]:
    kinds: dict[int, set[str]] = {}
    for event in events:
        if event.step is not None and event.kind in EVENTS_DRAWN:
            kinds.setdefault(event.step, set()).add(event.kind)
    return tuple((x_of(step), f"step {step}: {', '.join(sorted(found))}") for step, found in sorted(kinds.items()))


def _fits(value: float, is_log: bool) -> bool:
    """Beyond `EXTREME` the arithmetic of an axis overflows, and nothing could be read off either."""
    return abs(value) < EXTREME and (value > 1 / EXTREME or not is_log)


def _span(values: Sequence[float], panel: Panel) -> tuple[float, float]:
    low, high = min(values), max(values)
    if panel.is_log:
        return 10.0 ** math.floor(math.log10(low)), 10.0 ** (math.floor(math.log10(high)) + 1)
    if panel.is_share:
        return min(low, 0.0), max(high, 1.0)
    low = min(low, 0.0) if low > -0.5 * high else low  # from zero, unless all is far from it
    spare = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (low if low == 0 else low - spare), high + spare


def ticks_of(low: float, high: float) -> list[float]:
    """About five round values inside a range."""
    size = (high - low) / NUM_TICKS
    if size <= 0 or not math.isfinite(size):
        return [low]
    unit = 10.0 ** math.floor(math.log10(size))
    unit *= next(factor for factor in (1, 2, 5, 10) if factor * unit >= size * (1 - 1e-9))
    return [round(n * unit, 12) for n in range(math.ceil(low / unit - 1e-9), math.floor(high / unit + 1e-9) + 1)]


def tick(value: float) -> str:
    """Short enough for the margin."""
    return (
        f"{value:.4g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e")
    )


def log_ticks(low: float, high: float) -> list[float]:
    ends = range(round(math.log10(low)), round(math.log10(high)) + 1)
    return [10.0**n for n in ends[:: max(1, -(-len(ends) // 6))]]


def thin(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most about `most` points, with all peaks: of each stretch the first, the lowest and the highest."""
    if len(points) <= most:
        return list(points)
    size = -(-len(points) * 3 // most)
    kept = list[tuple[float, float]]()
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        kept += sorted({stretch[0], min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A point of the trade-off, with its interval."""

    label: str
    style: str
    """`policy`, `always_quarter` or `always_full`; `earlier` for an evaluation before the last one."""
    x: float
    y: float
    y_low: float
    y_high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TradeOff:
    """Accuracy over the visual-token ratio."""

    marks: tuple[Mark, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    baseline: str
    """The line from always-quarter to always-full: what asking at random would give. Empty without both."""


def trade_off(found: Sequence[tuple[str, str, float, float, tuple[float, float]]]) -> TradeOff | None:
    """Of (label, style, token ratio, accuracy, interval of the accuracy); None of none."""
    if not found:
        return None
    low = max(0.0, min(interval[0] for *_, interval in found) - 0.03)
    high = min(1.0, max(interval[1] for *_, interval in found) + 0.03)
    most = max(1.0, *(ratio for _, _, ratio, _, _ in found)) * 1.08

    def x_of(ratio: float) -> float:
        return round(LEFT + ratio / most * (WIDTH - LEFT - RIGHT), 1)

    def y_of(share: float) -> float:
        return round(TOP + (high - share) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    marks = tuple(
        Mark(label=label, style=style, x=x_of(ratio), y=y_of(share), y_low=y_of(ends[0]), y_high=y_of(ends[1]))
        for label, style, ratio, share, ends in found
    )
    ends = [next((mark for mark in marks if mark.style == style), None) for style in ("always_quarter", "always_full")]
    baseline = "".join(f"M{a.x},{a.y}L{b.x},{b.y}" for a, b in pairwise(ends) if a and b)
    return TradeOff(
        marks=marks,
        x_ticks=tuple((x_of(x), f"{x:.0%}") for x in ticks_of(0.0, most)),
        y_ticks=tuple((y_of(y), f"{y:.0%}" if high - low > 0.05 else f"{y:.1%}") for y in ticks_of(low, high)),
        baseline=baseline,
    )
