"""`visionthink judge check`: the configured judge against settled rows, as figures and as tables."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from configs.judges import JudgeConfig
from judge.chain import make_judge
from judge.counts import JudgeCounts
from judge.llm.apikey import read_key
from judge.pool import JudgePool
from judge.trust.check import CheckedRow, Rate, by_kind, check_rows, measure
from judge.trust.goldset import ATTACKS_FILE, GOLD_FILE, GoldRow, read_gold
from judge.verdict import GradeReply, Judge, JudgeRequest, NoVerdict, Outcome, Usage, Verdict

MAX_SHOWN_CHARS = 60
MAX_PAUSE_S = 30.0
"""Somebody sits before a check: an outage is not waited out as long as in a run."""
MAX_REASONS = 10


class InProcess:
    """A judge of this process as the handle of a pool. Adds up what its replies take, failed tries included."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self.usage = Usage()

    async def grade(self, request: JudgeRequest) -> GradeReply:
        started = time.monotonic()
        outcomes = tuple(await self._judge.grade(request))
        self.usage = sum((outcome.usage for outcome in outcomes), self.usage)
        return GradeReply(outcomes=outcomes, service_s=time.monotonic() - started)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooled:
    """A pool as a judge."""

    pool: JudgePool

    async def grade(self, request: JudgeRequest) -> list[Outcome]:
        return list(await self.pool.grade(request))


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeReport:
    """What a judge said about settled rows. Gold holds right and wrong answers, attacks hold wrong ones alone."""

    gold: tuple[CheckedRow, ...]
    """Rows that this judge is meant to decide."""
    beyond: tuple[CheckedRow, ...]
    """Gold rows that need knowledge, where the judge has written rules alone: shown, but in no rate."""
    attacks: tuple[CheckedRow, ...]
    usage: Usage
    """Of all calls to an LLM, further tries included."""
    cost_usd: float
    """At the prices of judge.llm."""

    @property
    def attack_success(self) -> Rate:
        return measure(self.attacks).false_positives

    @property
    def disagreements(self) -> tuple[CheckedRow, ...]:
        return tuple(row for row in (*self.gold, *self.attacks) if row.agrees is False)

    @property
    def unjudged(self) -> tuple[CheckedRow, ...]:
        return tuple(row for row in (*self.gold, *self.beyond, *self.attacks) if row.agrees is None)

    def figures(self) -> dict[str, object]:
        """For `--json`. A rate without a case is null."""
        gold, everything = measure(self.gold), measure((*self.gold, *self.beyond, *self.attacks))
        rates = {
            "agreement": gold.agreement,
            "false_positive_rate": gold.false_positives,
            "false_negative_rate": gold.false_negatives,
            "attack_success_rate": self.attack_success,
            "agreement_beyond_rules": measure(self.beyond).agreement,
        }
        return {
            **{name: rate.share for name, rate in rates.items()},
            **{f"{name}_interval": list(rate.interval) for name, rate in rates.items()},
            "num_gold": len(self.gold),
            "num_beyond_rules": len(self.beyond),
            "num_attacks": len(self.attacks),
            "num_unjudged": everything.num_unjudged,
            "median_s": everything.median_s,
            "p95_s": everything.p95_s,
            "num_calls": self.usage.num_calls,
            "prompt_tokens": self.usage.prompt_tokens,
            "reply_tokens": self.usage.reply_tokens,
            "cost_usd": self.cost_usd,
            "disagreements": [_shown(row) for row in self.disagreements],
        }


async def check_judge(config: JudgeConfig, files: Sequence[Path], *, judge: Judge | None = None) -> JudgeReport:
    """Ask about every row of the files, of the shipped sets where there is none.

    Tries, deadlines and limits are those of a run; verdicts of earlier runs are not taken.

    Args:
        judge: stands in for the configured one.

    Raises:
        DataError: a file that is not a gold or attack set.
        JudgeError: the key of the endpoint cannot be read.
    """
    sets = [read_gold(path) for path in files or (GOLD_FILE, ATTACKS_FILE)]
    gold = [row for rows in sets if not _is_attack_set(rows) for row in rows]
    attacks = [row for rows in sets if _is_attack_set(rows) for row in rows]
    stand_in = judge
    async with AsyncExitStack() as cleanup:
        if judge is None:
            if config.has_llm:
                read_key(config.llm)  # a missing key ends the command, not each call
            judge = chain = make_judge(config)
            cleanup.push_async_callback(chain.aclose)
        handle = InProcess(judge)
        pool = JudgePool(handle, replace(config, max_pause_s=min(config.max_pause_s, MAX_PAUSE_S)), local=stand_in)
        # The pool has its own deadline, which does not count waits for a turn; this one is against a hang.
        longest_s = config.timeout_s * (1 + len(gold) + len(attacks)) + MAX_PAUSE_S
        checked = await check_rows(Pooled(pool=pool), [*gold, *attacks], timeout_s=longest_s)
    of_gold, rules_alone = checked[: len(gold)], not config.has_llm
    return JudgeReport(
        gold=tuple(row for row in of_gold if row.row.is_decidable_by_rules or not rules_alone),
        beyond=tuple(row for row in of_gold if rules_alone and not row.row.is_decidable_by_rules),
        attacks=checked[len(gold) :],
        usage=handle.usage,
        cost_usd=JudgeCounts.of_usage(handle.usage, config.llm).cost_usd,
    )


def _is_attack_set(rows: Sequence[GoldRow]) -> bool:
    return not any(row.is_correct for row in rows)


def check_tables(report: JudgeReport) -> list[Table]:
    """By kind, what it took, the disagreements, and why there was no verdict."""
    gold, attacks = _kinds_table("gold set", report.gold), _kinds_table("attack set", report.attacks)
    tables = [table for table in (gold, attacks) if table.row_count > 1]
    if report.beyond:
        tables.append(_kinds_table("gold rows that rules alone cannot settle (in no rate)", report.beyond))
    if report.usage.num_calls:
        tables.append(_usage_table(report))
    if report.disagreements:
        table = Table("kind", "reference", "prediction", "people", "judge", "reason", title="disagreements")
        for row in report.disagreements:
            table.add_row(*(escape(str(cell)) for cell in _shown(row).values()))
        tables.append(table)
    if report.unjudged:
        tables.append(_unjudged_table(report.unjudged))
    return tables


def _usage_table(report: JudgeReport) -> Table:
    usage, everything = report.usage, measure((*report.gold, *report.beyond, *report.attacks))
    table = Table("calls", "prompt tokens", "reply tokens", "cost", "median", "95 %", title="LLM")
    latency = (f"{seconds * 1000:.1f} ms" for seconds in (everything.median_s, everything.p95_s))
    counts = (str(count) for count in (usage.num_calls, usage.prompt_tokens, usage.reply_tokens))
    table.add_row(*counts, f"{report.cost_usd:.4f} USD", *latency)
    return table


def _unjudged_table(rows: Sequence[CheckedRow]) -> Table:
    """Reasons with their number, the most frequent first."""
    counts = Counter(
        (row.outcome.failure.value, row.outcome.reason) for row in rows if isinstance(row.outcome, NoVerdict)
    )
    table = Table("rows", "failure", "reason", title="no verdict (in no rate)")
    for (failure, reason), count in counts.most_common(MAX_REASONS):
        table.add_row(str(count), failure, escape(reason))
    return table


def _kinds_table(title: str, checked: Sequence[CheckedRow]) -> Table:
    table = Table("kind", "rows", "agreement", "passed wrongly", "failed wrongly", "no verdict", "median", title=title)
    for kind, trust in {**by_kind(checked), "all": measure(checked)}.items():
        rates = (trust.agreement, trust.false_positives, trust.false_negatives)
        latency = f"{trust.median_s * 1000:.1f} ms"
        num_rows = trust.agreement.num_cases + trust.num_unjudged
        table.add_row(kind, str(num_rows), *(_percent(rate) for rate in rates), str(trust.num_unjudged), latency)
    return table


def _percent(rate: Rate) -> str:
    low, high = rate.interval
    return "-" if rate.share is None else f"{rate.share:.1%} ({low:.1%} to {high:.1%})"


def _shown(checked: CheckedRow) -> dict[str, object]:
    row, outcome = checked.row, checked.outcome
    return {
        "kind": row.kind,
        "reference": row.reference[:MAX_SHOWN_CHARS],
        "prediction": row.prediction[:MAX_SHOWN_CHARS],
        "people": int(row.is_correct),
        "judge": int(outcome.is_correct) if isinstance(outcome, Verdict) else None,
        "reason": outcome.reason[:MAX_SHOWN_CHARS],
    }
