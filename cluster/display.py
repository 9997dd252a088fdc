"""What a person sees while a run goes on: two bars and the last steps on a terminal, a line per step in a log.

Everything goes to stderr, so that stdout holds results alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from configs.schema import Config

COLUMNS = (
    ("reward", "reward/mean", "{:.3f}"),
    ("right", "reward/accuracy", "{:.1%}"),
    ("asks", "policy/ask_share", "{:.1%}"),
    ("needed", "policy/ask_share_needed", "{:.1%}"),
    ("unneeded", "policy/ask_share_unneeded", "{:.1%}"),
    ("visual tokens", "policy/visual_token_share", "{:.1%}"),
    ("trained", "groups/trained", "{:.0f}"),
    ("collect", "time/collect_s", "{:.1f} s"),
    ("update", "time/update_s", "{:.1f} s"),
    ("publish", "time/publish_s", "{:.2f} s"),
)
"""Header, figure and format of the table of steps."""
LLM_COLUMNS = (
    ("judge wait", "time/judge_wait_s", "{:.1f} s"),
    ("LLM calls", "judge/llm_calls", "{:.0f}"),
    ("cost", "judge/cost_usd", "${:.4f}"),
)
"""And what an LLM judge takes."""

NUM_ROWS = 12


class Display:
    """Live on a terminal, plain lines elsewhere."""

    def __init__(self, config: Config, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._config = config
        self._columns = COLUMNS + LLM_COLUMNS if config.judge.has_llm else COLUMNS
        self._rows: deque[tuple[int, Mapping[str, float]]] = deque(maxlen=NUM_ROWS)
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        )
        self._steps = self._progress.add_task("steps", total=config.train.num_steps)
        self._current = self._progress.add_task("starting Ray, vLLM, DeepSpeed and judges", total=None)
        self._live = Live(self._screen(), console=self.console, refresh_per_second=4)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live.is_started:
            self._live.stop()

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        self.console.print(f"warning: {text}", style="yellow", highlight=False, markup=False, soft_wrap=True)

    def started(self, step: int) -> None:
        self._progress.update(self._steps, completed=step)
        self._await_groups()

    def group_done(self) -> None:
        self._progress.advance(self._current)

    def step_done(self, step: int, figures: Mapping[str, float]) -> None:
        self._rows.append((step, figures))
        self._progress.update(self._steps, completed=step)
        self._await_groups()
        if self.console.is_terminal:
            self._live.update(self._screen())
        else:
            cells = (f"{head} {form.format(figures[key])}" for head, key, form in self._columns if key in figures)
            self.say(f"step {step}/{self._config.train.num_steps}: {', '.join(cells)}")

    def evaluation_started(self, num_plays: int) -> None:
        self._progress.reset(self._current, total=num_plays, description="held-out samples")
        if not self.console.is_terminal:
            self.say(f"evaluating: {num_plays} episodes")

    def evaluation_played(self) -> None:
        self._progress.advance(self._current)

    def _await_groups(self) -> None:
        self._progress.reset(self._current, total=self._config.train.prompts_per_step, description="groups judged")

    def _screen(self) -> Group:
        table = Table("step", *(head for head, _, _ in self._columns), title=f"run {self._config.run.name}")
        for step, figures in self._rows:
            cells = (form.format(figures[key]) if key in figures else "-" for _, key, form in self._columns)
            table.add_row(str(step), *cells)
        return Group(table, self._progress)


def evaluation_table(figures: Mapping[str, object]) -> Table:
    """The policy beside always-quarter and always-full."""

    def share(key: str) -> str:
        figure = figures.get(key)
        return f"{figure:.1%}" if isinstance(figure, float | int) else "-"

    table = Table(
        "played as", "right", "asks", "when needed", "when not", "visual tokens", title="held-out split, greedy"
    )
    asked = (share("ask_share"), share("ask_share_needed"), share("ask_share_unneeded"))
    table.add_row("the policy", share("accuracy"), *asked, share("visual_token_share"))
    table.add_row("always quarter", share("accuracy_quarter"), "-", "-", "-", "25.0%")
    table.add_row("always full", share("accuracy_full"), "-", "-", "-", "100.0%")
    return table


def judge_line(totals: Mapping[str, float]) -> str:
    """What an LLM judge took in a run."""
    tokens = totals["prompt_tokens"] + totals["reply_tokens"]
    return (
        f"judge: {totals['llm_calls']:,.0f} LLM calls, {totals['cache_hits']:,.0f} verdicts known before, "
        f"{tokens:,.0f} tokens, ${totals['cost_usd']:.4f}"
    )
