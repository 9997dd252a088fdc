"""Progress of a run: a live table and two progress bars on a terminal, time-stamped lines elsewhere.

Everything goes to stderr; stdout is reserved for results.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median
from types import TracebackType
from typing import Self

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from actors.needs import NEED_NAMES, NEEDS
from actors.tools.registry import toolbox_of
from cluster.visible import visible
from configs.schema import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of the step table: one figure, or several of one kind."""

    head: str
    key: str
    form: str
    more: tuple[str, ...] = ()
    """Further figures in the same cell."""

    def is_in(self, figures: Mapping[str, float]) -> bool:
        return any(key in figures for key in (self.key, *self.more))

    def cell(self, figures: Mapping[str, float]) -> str:
        return " / ".join(self.form.format(figures[key]) if key in figures else "-" for key in (self.key, *self.more))

    @property
    def width(self) -> int:
        """Width in characters, including the gap after it."""
        return max(*map(len, self.head.split("\n")), 7 + 9 * len(self.more)) + GAP


GAP = 2
STEP_WIDTH = 4 + GAP
COLUMNS = (
    Column(head="reward", key="reward/mean", form="{:.3f}"),
    Column(head="accuracy", key="reward/accuracy", form="{:.1%}"),
    Column(head="tool calls", key="policy/ask_share", form="{:.1%}"),
    Column(head="visual tokens", key="policy/visual_token_share", form="{:.1%}"),
    Column(head="trained", key="groups/trained", form="{:.0f}"),
    Column(head="step", key="time/step_s", form="{:.1f} s"),
    Column(head="rollout", key="time/collect_s", form="{:.1f} s"),
    Column(head="update", key="time/update_s", form="{:.1f} s"),
    Column(head="sync", key="time/publish_s", form="{:.2f} s"),
    Column(head="tool calls if needed", key="policy/ask_share_needed", form="{:.1%}"),
    Column(head="if not needed", key="policy/ask_share_unneeded", form="{:.1%}"),
)
"""In order of importance: a narrow terminal drops the last ones. `needed`: tool-call rate on samples that need the
full view."""
LLM_COLUMNS = (
    Column(head="judge wait", key="time/judge_wait_s", form="{:.1f} s"),
    Column(head="LLM calls", key="judge/llm_calls", form="{:.0f}"),
    Column(head="cost", key="judge/cost_usd", form="${:.4f}"),
)
"""Added when an LLM judges."""
RIGHT_TOOL_COLUMN = Column(
    head=f"right tool:\n{' / '.join(NEEDS)}",
    key=f"policy/right_tool_share_{NEEDS[0]}",
    form="{:.1%}",
    more=tuple(f"policy/right_tool_share_{need}" for need in NEEDS[1:]),
)
"""Of the episodes that need a view, those answered after just it. Added where a data set says what its samples need and
there is more to choose from than the full view."""
NUM_FIRST = 4
"""Columns before it."""
EVALUATION_TITLE = "held-out split, greedy"
EVALUATION_HEADS = ("accuracy", "tool calls", "if needed", "if not needed", "visual tokens")
RIGHT_TOOL_TITLE = f"{EVALUATION_TITLE}, right tool by what is needed"
RIGHT_TOOL_KEYS = {about: f"right_tool_share_{need}" for need, about in NEED_NAMES.items()} | {
    "visual tokens": "visual_token_share",
    "optimum": "visual_token_optimum",
}
MAX_ROWS = 30
NUM_OTHER_LINES = 7
"""Title, members, headings, progress bars and one spare line."""
NUM_STEPS_FOR_ETA = 5


def fitting_columns(columns: Sequence[Column], width: int) -> list[Column]:
    """The first columns that fit into `width` characters beside the step number; at least one."""
    left = width - STEP_WIDTH
    chosen: list[Column] = []
    for column in columns:
        left -= column.width
        if left < 0 and chosen:
            break
        chosen.append(column)
    return chosen


def time_left(step_seconds: Sequence[float], num_left: int) -> timedelta | None:
    """Estimated time to the end of the run, from the median of the latest steps; None before the first."""
    if not step_seconds:
        return None
    return timedelta(seconds=round(num_left * median(step_seconds[-NUM_STEPS_FOR_ETA:])))


class Display:
    """Live on a terminal, plain lines elsewhere."""

    def __init__(self, config: Config, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._config = config
        self._has_tool_choice = not toolbox_of(config.rollout.tools).is_resize_alone
        self._columns: tuple[Column, ...] = COLUMNS + LLM_COLUMNS if config.judge.has_llm else COLUMNS
        self._rows: deque[tuple[int, Mapping[str, float]]] = deque(maxlen=MAX_ROWS)
        self._step_seconds: list[float] = []
        self._eta: timedelta | None = None
        self._said: set[str] = set()
        self._members = ""
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
        )
        self._steps = self._progress.add_task("steps", total=config.train.num_steps, note="")
        self._current = self._progress.add_task("starting engines, learner and judges", total=None, note="")
        self._live = Live(self, console=self.console, refresh_per_second=4)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        else:
            self.say("starting engines, learner and judges")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live.is_started:
            self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._screen(options.max_width, console.height)

    def say(self, text: str) -> None:
        self.console.print(f"{self._time()}{visible(text)}", highlight=False, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        line = f"{self._time()}warning: {visible(text)}"
        self.console.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)

    def warn_once(self, text: str) -> None:
        """Warn, unless the same warning was given before."""
        if text not in self._said:
            self._said.add(text)
            self.warn(text)

    def show_members(self, line: str) -> None:
        """Who takes part in the run; shown above the table, and nowhere else: events tell of changes."""
        self._members = line

    @property
    def eta_s(self) -> float | None:
        """Estimated seconds from the last finished step to the end of the run; None before the first one."""
        return self._eta.total_seconds() if self._eta is not None else None

    @property
    def phase(self) -> str:
        """What the run does, and how much of it is done."""
        task = next(task for task in self._progress.tasks if task.id == self._current)
        return task.description + (f" {task.completed:.0f}/{task.total:.0f}" if task.total else "")

    def started(self, step: int) -> None:
        self._progress.update(self._steps, completed=step)
        self._await_groups(step + 1)

    def group_done(self) -> None:
        """One more group was judged or lost."""
        self._progress.advance(self._current)

    def batch_done(self) -> None:
        """All groups of a step are finished."""
        self._progress.reset(self._current, total=None, description="update and weight sync")

    def step_done(self, step: int, figures: Mapping[str, float]) -> None:
        self._rows.append((step, figures))
        if self._tells_right_tools(figures, "policy/") and RIGHT_TOOL_COLUMN not in self._columns:
            self._columns = (*self._columns[:NUM_FIRST], RIGHT_TOOL_COLUMN, *self._columns[NUM_FIRST:])
        self._step_seconds.append(figures.get("time/step_s", 0.0))
        eta = self._eta = time_left(self._step_seconds, self._config.train.num_steps - step)
        self._progress.update(self._steps, completed=step, note=f"ETA {eta}" if eta else "")
        self._await_groups(step + 1)
        if not self.console.is_terminal:
            shown = [(column.head.replace("\n", " "), column) for column in self._columns if column.is_in(figures)]
            cells = (f"{head} {column.cell(figures)}" for head, column in shown)
            self.say(f"step {step}/{self._config.train.num_steps}: {', '.join(cells)}, ETA {eta}")

    def evaluation_started(self, num_plays: int) -> None:
        self.work_started("held-out episodes", num_plays)

    def evaluation_played(self) -> None:
        self._progress.advance(self._current)

    def work_started(self, what: str, total: int) -> None:
        """A phase of that many units; `evaluation_played` ends one of them."""
        self._progress.reset(self._current, total=total, description=what)
        if not self.console.is_terminal:
            self.say(f"{total} {what}")

    def evaluation_done(self, figures: Mapping[str, object]) -> None:
        """The policy compared with always-quarter and always-full."""
        self._show_rows(EVALUATION_TITLE, EVALUATION_HEADS, _evaluation_rows(figures))
        if self._tells_right_tools(figures):
            cells = tuple(_share(figures, key) for key in RIGHT_TOOL_KEYS.values())
            self._show_rows(RIGHT_TOOL_TITLE, tuple(RIGHT_TOOL_KEYS), {"policy": cells})

    def _show_rows(self, title: str, heads: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
        if self.console.is_terminal:
            self.console.print(_named_rows(title, heads, rows))
            return
        for name, cells in rows.items():
            shown = [f"{head} {cell}" for head, cell in zip(heads, cells, strict=True) if cell != "-"]
            self.say(f"{title}, {name}: {', '.join(shown)}")

    def _tells_right_tools(self, figures: Mapping[str, object], prefix: str = "") -> bool:
        """Whether right tools are told: the figures have them, and the policy or the data set more than the full
        view."""
        known = {need for need in NEEDS if figures.get(f"{prefix}right_tool_share_{need}") is not None}
        return bool(known) and (self._has_tool_choice or "region" in known)

    def _await_groups(self, step: int) -> None:
        if step <= self._config.train.num_steps:
            wanted = self._config.train.prompts_per_step
            self._progress.reset(self._current, total=wanted, description=f"step {step}: rollouts and judging")

    def _time(self) -> str:
        return "" if self.console.is_terminal else f"{datetime.now():%H:%M:%S} "

    def _screen(self, width: int, height: int) -> Group:
        columns = fitting_columns(self._columns, width)
        table = Table(title=f"run {self._config.run.name}", box=None, padding=(0, GAP, 0, 0), pad_edge=False)
        for head in ("step", *(column.head for column in columns)):
            table.add_column(head, justify="right", no_wrap=True, vertical="bottom")
        num_rows = max(1, height - NUM_OTHER_LINES - any("\n" in column.head for column in columns))
        for step, figures in list(self._rows)[-num_rows:]:
            table.add_row(str(step), *(column.cell(figures) for column in columns))
        parts: list[RenderableType] = [Text(self._members, no_wrap=True, overflow="ellipsis")] if self._members else []
        return Group(*parts, *([table] if self._rows else []), self._progress)


def _evaluation_rows(figures: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
    """Per way to play, the cells under EVALUATION_HEADS: the policy beside always-quarter and always-full."""
    asked = (_share(figures, key) for key in ("ask_share", "ask_share_needed", "ask_share_unneeded"))
    return {
        "policy": (_share(figures, "accuracy"), *asked, _share(figures, "visual_token_share")),
        "always quarter": (_share(figures, "accuracy_quarter"), "-", "-", "-", "25.0%"),
        "always full": (_share(figures, "accuracy_full"), "-", "-", "-", "100.0%"),
    }


def _share(figures: Mapping[str, object], key: str) -> str:
    figure = figures.get(key)
    return f"{figure:.1%}" if isinstance(figure, float | int) else "-"


def _named_rows(title: str, heads: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Table:
    table = Table(title=title, box=None, padding=(0, GAP, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


def judge_line(totals: Mapping[str, float]) -> str:
    """Calls, tokens and cost of the LLM judge in a run."""
    tokens = totals["prompt_tokens"] + totals["reply_tokens"]
    return (
        f"judge: {totals['llm_calls']:,.0f} LLM calls, {totals['cache_hits']:,.0f} cached verdicts, "
        f"{tokens:,.0f} tokens, ${totals['cost_usd']:.4f}"
    )
