"""A load test on the console: how far it is, and what came of it."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cluster.judging.load import LoadPlan, LoadTrace, follow_load, own_cluster
from cluster.judging.saturation import Saturation, saturate
from configs.judges import JudgeConfig

MAX_SHOWN_ERRORS = 3


class LoadProgress:
    """One bar over the whole test: plain on a terminal, silent elsewhere."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def stage(self, what: str, total: float | None = None) -> None:
        self._progress.reset(self._task, description=what, total=total)

    def reached(self, amount: float) -> None:
        self._progress.update(self._task, completed=amount)


async def measure_load(plan: LoadPlan, judge: JudgeConfig, progress: LoadProgress) -> tuple[LoadTrace, Saturation]:
    """The load first, then saturation, on a cluster of its own.

    Args:
        judge: settings of the pool that is brought to saturation.
    """
    progress.stage("starting Ray and the judges")
    with own_cluster():
        progress.stage(f"{len(plan.arrivals)} groups of {plan.group_size}", total=plan.seconds)
        trace = await follow_load(plan, on_progress=progress.reached)
        progress.stage("verdicts per second at saturation")
        saturation = await saturate(judge, group_size=plan.group_size)
    return trace, saturation


def load_table(trace: LoadTrace, saturation: Saturation) -> Table:
    plan, figures, speed = trace.plan, trace.figures(), saturation.figures()
    _, busy, _ = plan.phases
    table = Table(
        "what", "seen", title=f"judge pool under {busy.rate:.1f} groups/s of {plan.latency.mean_s:.2f} s each"
    )
    waits = (_seconds(figures["queue_wait_p50_s"]), _seconds(figures["queue_wait_p95_s"]))
    rows = {
        "right size (Little's law)": f"{figures['right_size']} replicas",
        "reached after": _seconds(figures["right_size_s"]),
        "most replicas beyond it": str(figures["overshoot"]),
        "released after": _seconds(figures["release_s"]),
        "wait of a call, p50 and p95": ", ".join(waits),
        "verdicts, lost, doubled": f"{figures['num_verdicts']}, {figures['lost']}, {figures['doubled']}",
        "verdicts/s by group, by answer": f"{speed['verdicts_per_s']:.0f}, {speed['peer_verdicts_per_s']:.0f}"
        f" ({speed['verdicts_ratio']:.1f}x)",
    }
    for what, seen in rows.items():
        table.add_row(what, seen)
    for error in trace.errors[:MAX_SHOWN_ERRORS]:
        table.add_row("failed call", escape(error))
    return table


def _seconds(value: object) -> str:
    if not isinstance(value, int | float):
        return "never"
    return f"{1000 * value:.1f} ms" if value < 0.1 else f"{value:.1f} s"
