"""Monitors the judges of a run: usage per step and in total, and whether they can be trusted.

Canaries and the count of replicas are asked for in tasks beside the loop. What they raise comes out at `check`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from configs.schema import Config
from judge.pool import local_judges
from judge.trust.canary import CanaryWatch, draw_canaries, first_undecided
from judge.trust.goldset import ATTACKS_FILE, GOLD_FILE, GoldRow, read_gold
from judge.verdict import JudgeCounts, JudgeRequest, Outcome


class WatchedJudges(Protocol):
    """The part of `judge.pool.JudgePool` needed for monitoring."""

    @property
    def counters(self) -> JudgeCounts: ...

    async def grade_by_llm(self, request: JudgeRequest) -> Outcome:
        """Of the LLM as it is now: past rules and cache, counted as no group."""


class JudgeWatch:
    """One per run. `count_replicas`: how many judges are up, None where Serve does not say; blocks for a moment."""

    def __init__(
        self,
        judges: WatchedJudges,
        config: Config,
        *,
        warn: Callable[[str], None],
        count_replicas: Callable[[], int | None] | None = None,
    ) -> None:
        self._judges = judges
        self._share = config.judge.canary_share if config.judge.has_llm else 0.0
        self._seed = config.run.seed
        self._rows = (*read_gold(GOLD_FILE), *read_gold(ATTACKS_FILE)) if self._share else ()
        self._before_llm = local_judges(config.judge)
        self._canaries = CanaryWatch(alarm=config.judge.canary_alarm, stop=config.judge.canary_stop)
        self._warn = warn
        self._count_replicas = count_replicas
        self._num_replicas: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._shown = JudgeCounts()
        self._num_canaries_shown = 0
        self._before: Mapping[str, float] = {}

    def restore(self, totals: Mapping[str, float]) -> None:
        """Continue counting from the totals in a checkpoint."""
        self._before = dict(totals)

    def send_canary(self, step: int, sample: str) -> None:
        """Called for each group: with probability `judge.canary_share`, judge a canary with it."""
        rows = draw_canaries(self._rows, self._share, seed=self._seed, step=step, sample=sample)
        if rows:
            self._start(self._judge_canary(rows))

    def ask_replicas(self) -> None:
        """Query the number of judge replicas, for the metrics of this step."""
        if self._count_replicas is not None:
            self._start(self._ask_replicas(self._count_replicas))

    @property
    def num_replicas(self) -> int | None:
        """Judge replicas, as Serve last said."""
        return self._num_replicas

    def check(self) -> None:
        """Raise exceptions of the tasks: `RunError` if the judge passes too many wrong answers."""
        done = {task for task in self._tasks if task.done()}
        self._tasks -= done
        for task in done:
            task.result()

    def figures(self) -> dict[str, float]:
        """Judging metrics since the last call."""
        counts, num_canaries = self._judges.counters, self._canaries.num_canaries
        since, num_new = counts - self._shown, num_canaries - self._num_canaries_shown
        self._shown, self._num_canaries_shown = counts, num_canaries
        figures = {
            **_amounts(since, num_new),
            "queue_s": since.mean_queue_s,
            "mean_s": since.mean_s,
            "canary_false_positive_rate": self._canaries.false_positives.share,
            "replicas": self._num_replicas,
        }
        return {f"judge/{name}": float(figure) for name, figure in figures.items() if figure is not None}

    def totals(self) -> dict[str, float]:
        """Judging totals of the whole run, including before it was resumed."""
        now = _amounts(self._judges.counters, self._canaries.num_canaries)
        return {name: round(amount + self._before.get(name, 0), 6) for name, amount in now.items()}

    async def close(self) -> None:
        """Cancel what is still in progress."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(asyncio.create_task(coroutine))

    async def _judge_canary(self, rows: Sequence[GoldRow]) -> None:
        row = await first_undecided(rows, self._before_llm)
        if row and (warning := self._canaries.add(row, await self._judges.grade_by_llm(row.request))):
            self._warn(warning)

    async def _ask_replicas(self, count_replicas: Callable[[], int | None]) -> None:
        self._num_replicas = await asyncio.to_thread(count_replicas)


def _amounts(counts: JudgeCounts, num_canaries: int) -> dict[str, float]:
    """All counters by short names: `num_llm_calls` becomes `llm_calls`."""
    amounts = {name.removeprefix("num_"): amount for name, amount in asdict(counts).items()}
    return {**amounts, "canaries": num_canaries}
