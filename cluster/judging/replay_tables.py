"""What another judge would have changed about a run, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from cluster.judging.replay_report import DECISIONS, ReplayReport, Tally, decision, means
from judge.verdict import Outcome

MAX_STEP_ROWS = 20
MAX_SHOWN_CHARS = 60


def replay_tables(report: ReplayReport) -> list[Table]:
    """Decisions before and after, the course of the run, and examples."""
    tables = [_decisions_table(report.total), _steps_table(report)]
    if report.examples:
        table = Table("step", "question", "reference", "answer", "recorded", "now", title="examples of what changes")
        for row in report.examples:
            cells = (row.question, row.reference, row.prediction, _said(row.before), _said(row.after))
            table.add_row(str(row.step), *(escape(_short(cell)) for cell in cells))
        tables.append(table)
    return tables


def summary_lines(report: ReplayReport) -> list[str]:
    """What changed and what it took, in words."""
    total, asked = report.total, report.asked
    rate = total.changed
    low, high = rate.interval
    share = "" if rate.share is None else f": {rate.share:.2%} (95 % interval {low:.2%} to {high:.2%})"
    return [
        f"{rate.num_hits} of {rate.num_cases} answers decided differently{share}",
        f"{total.num_signal_gained} groups gain a signal, {total.num_signal_lost} lose it",
        f"{asked.num_from_record} outcomes as recorded, {asked.num_cache_hits} from the cache, "
        f"{asked.num_llm_calls} LLM calls, {asked.cost_usd:.4f} USD",
    ]


def _decisions_table(total: Tally) -> Table:
    table = Table("recorded", *(f"now {name}" for name in DECISIONS), "all", title="decisions on answers")
    for before in DECISIONS:
        cells = [total.count(before=before, after=after) for after in DECISIONS]
        table.add_row(before, *(str(cell) for cell in cells), str(total.count(before=before)))
    table.add_row("all", *(str(total.count(after=after)) for after in DECISIONS), str(total.count()))
    return table


def _steps_table(report: ReplayReport) -> Table:
    """A row per step; of long runs, a row per stretch of steps."""
    columns = ("episodes", "changed", "reward", "now", "accuracy", "now")
    table = Table("step", *columns, title="by step")
    steps = list(report.steps)
    size = max(1, math.ceil(len(steps) / MAX_STEP_ROWS))
    for start in range(0, len(steps), size):
        stretch = steps[start : start + size]
        name = str(stretch[0]) if size == 1 else f"{stretch[0]} to {stretch[-1]}"
        table.add_row(name, *_step_cells(sum((report.steps[step] for step in stretch), Tally())))
    table.add_row("all", *_step_cells(report.total))
    return table


def _step_cells(tally: Tally) -> Iterator[str]:
    yield str(tally.num_episodes)
    yield str(tally.changed.num_hits)
    yield from ("-" if mean is None else f"{mean:.3f}" for mean in means(tally).values())


def _said(outcome: Outcome) -> str:
    return f"{decision(outcome)}: {outcome.reason}"


def _short(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 1] + "…"
