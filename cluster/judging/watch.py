"""The judges of a run as its loop sees them: what they took in a step and in all, and whether they can be trusted.

Canaries and the question how many replicas there are run beside the loop. What they bring, errors too, comes out at
`check`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from configs.schema import Config
from judge.counts import JudgeCounts
from judge.pool import JudgePool
from judge.trust.canary import CanaryWatch, canary_request, canary_rows, draw_canary
from judge.trust.goldset import GoldRow


class JudgeWatch:
    """One per run.

    Args:
        warn: tells a person that the judge passes what is wrong.
        count_replicas: how many judges are up, None where Serve does not say; blocks for a moment.
    """

    def __init__(
        self,
        judges: JudgePool,
        config: Config,
        *,
        warn: Callable[[str], None],
        count_replicas: Callable[[], int | None] | None = None,
    ) -> None:
        self._judges = judges
        self._share = config.judge.canary_share
        self._seed = config.run.seed
        self._rows = canary_rows(config.judge) if self._share and config.judge.has_llm else ()
        self._canaries = CanaryWatch(alarm=config.judge.canary_alarm, stop=config.judge.canary_stop)
        self._warn = warn
        self._count_replicas = count_replicas
        self._num_replicas: int | None = None
        self._asides: set[asyncio.Task[None]] = set()
        self._told = JudgeCounts()
        self._num_canaries_told = 0
        self._before: Mapping[str, float] = {}

    def restore(self, totals: Mapping[str, float]) -> None:
        """Go on counting from what the run had taken when its checkpoint was written."""
        self._before = dict(totals)

    def ride_along(self, step: int, sample: str) -> None:
        """A group goes to the judges: now and then a settled row goes beside it. Nobody waits for that."""
        row = draw_canary(self._rows, self._share, seed=self._seed, step=step, sample=sample)
        if row is not None:
            self._start(self._judge_canary(row))

    def ask_replicas(self) -> None:
        """Find out how many judges there are, for the figures of this step."""
        if self._count_replicas is not None:
            self._start(self._ask_replicas(self._count_replicas))

    def check(self) -> None:
        """Take in what is done.

        Raises:
            RunError: the judge passes too many wrong answers.
            JudgeError: an outage outlasted its limit.
        """
        done = {task for task in self._asides if task.done()}
        self._asides -= done
        for error in [task.exception() for task in done]:
            if error is not None:
                raise error

    def figures(self) -> dict[str, float]:
        """What judging took since the last time."""
        counts = self._judges.counters
        since, self._told = counts - self._told, counts
        num_canaries = self._canaries.num_canaries
        figures = {
            "judge/calls": since.num_calls,
            "judge/llm_calls": since.num_llm_calls,
            "judge/cache_hits": since.num_cache_hits,
            "judge/prompt_tokens": since.prompt_tokens,
            "judge/reply_tokens": since.reply_tokens,
            "judge/cost_usd": since.cost_usd,
            "judge/retries": since.num_retries,
            "judge/throttled": since.num_throttled,
            "judge/unjudged": since.num_unjudged,
            "judge/queue_s": since.mean_queue_s,
            "judge/paused_s": since.paused_s,
            "judge/mean_s": since.mean_s,
            "judge/canaries": num_canaries - self._num_canaries_told,
            "judge/canary_false_positive_rate": self._canaries.false_positives.share,
            "judge/replicas": self._num_replicas,
        }
        self._num_canaries_told = num_canaries
        return {name: float(figure) for name, figure in figures.items() if figure is not None}

    def totals(self) -> dict[str, float]:
        """What judging took in the whole run, also before it was resumed."""
        counts = self._judges.counters
        now = {
            "calls": counts.num_calls,
            "llm_calls": counts.num_llm_calls,
            "cache_hits": counts.num_cache_hits,
            "prompt_tokens": counts.prompt_tokens,
            "reply_tokens": counts.reply_tokens,
            "cost_usd": counts.cost_usd,
            "retries": counts.num_retries,
            "throttled": counts.num_throttled,
            "unjudged": counts.num_unjudged,
            "paused_s": counts.paused_s,
            "canaries": self._canaries.num_canaries,
        }
        return {name: round(figure + self._before.get(name, 0), 6) for name, figure in now.items()}

    async def close(self) -> None:
        """Give up what is still under way."""
        for task in self._asides:
            task.cancel()
        await asyncio.gather(*self._asides, return_exceptions=True)

    def _start(self, aside: Coroutine[Any, Any, None]) -> None:
        self._asides.add(asyncio.create_task(aside))

    async def _judge_canary(self, row: GoldRow) -> None:
        (outcome,) = await self._judges.grade_by_llm(canary_request(row))
        if warning := self._canaries.add(row, outcome):
            self._warn(warning)

    async def _ask_replicas(self, count_replicas: Callable[[], int | None]) -> None:
        self._num_replicas = await asyncio.to_thread(count_replicas)
