"""`visionthink judge check`: the configured judge, in this process, on rows with human verdicts."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
from rich.table import Table

from configs.judges import JudgeConfig
from judge.llm.cache import open_cache
from judge.llm.client import LLMJudge, preflight_judge
from judge.llm.version import judge_version
from judge.pool import JudgePool
from judge.trust.check import CheckedRow, Rate, certain_rules, check_rows, measure
from judge.trust.goldset import ATTACKS_FILE, GOLD_FILE, read_gold
from judge.verdict import GradeReply, Judge, JudgeCounts, JudgeRequest, Verdict, grade_one

MAX_ROWS, MAX_CHARS = 10, 60  # of the table of disagreements; `--json` lists all
MAX_PAUSE_S = 30.0  # checks are interactive: an outage is not waited out as in a run
MAX_FALSE_NEGATIVE_RATE = 0.2  # of a trusted judge


@dataclass(frozen=True, slots=True, kw_only=True)
class InProcess:
    """A judge in this process, as the handle of a pool."""

    judge: Judge

    async def grade(self, request: JudgeRequest) -> GradeReply:
        return await grade_one(self.judge, request)


@asynccontextmanager
async def pool_in_process(
    config: JudgeConfig,
    *,
    make: Callable[[JudgeConfig], Judge] | None = None,
    has_cache: bool = False,
    warn: Callable[[str], None] = lambda text: None,
) -> AsyncIterator[JudgePool]:
    """A pool over the LLM of the chain, which `make` builds, by default that of the config, whose endpoint is asked
    first; `has_cache`: with `judge.cache`. Ray starts only where `judge.chain` names `cluster`. Raises JudgeError where
    the endpoint refuses, or the cluster's LLM does not come up.
    """
    async with AsyncExitStack() as cleanup:
        if "cluster" in config.chain:
            from cluster.judging.start import llm_in_cluster  # imports Ray

            config = await cleanup.enter_async_context(llm_in_cluster(config))
        handle = store = None
        if config.has_llm:
            if make is None:
                await preflight_judge(config, warn=warn)
            handle = InProcess(judge=(make or LLMJudge)(config))
            if isinstance(handle.judge, LLMJudge):
                cleanup.push_async_callback(handle.judge.aclose)
            if has_cache and (store := open_cache(config, warn)):
                cleanup.callback(store.close)
        yield JudgePool(handle, config, store=store, judge_version=judge_version(config), warn=warn)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeReport:
    """Verdicts of a judge on rows with human verdicts."""

    config: JudgeConfig
    gold: tuple[CheckedRow, ...]
    """Correct and wrong answers."""
    attacks: tuple[CheckedRow, ...]
    """Wrong answers only."""
    by_rules: tuple[CheckedRow, ...]
    """Gold (of none, attacks) as the rules judge in front of an LLM: no verdict where they are not certain."""
    took: JudgeCounts
    seconds: float

    @property
    def all_rows(self) -> tuple[CheckedRow, ...]:
        return (*self.gold, *self.attacks)

    @property
    def rates(self) -> dict[str, Rate]:
        """By the name that `--json` gives them."""
        gold, decided = measure(self.gold), measure(self.by_rules).agreement
        return {
            "agreement": gold.agreement,
            "false_positive_rate": gold.false_positives,
            "false_negative_rate": gold.false_negatives,
            "attack_success_rate": measure(self.attacks).false_positives,
            "decided": Rate(num_hits=decided.num_cases, num_cases=len(self.by_rules)),
            "decided_agreement": decided,
        }

    @property
    def verdict(self) -> tuple[str, str]:
        """Whether the judge can be trusted (yes, no, unclear) and why; "yes" and "no" hold for the whole interval."""
        rates, most = self.rates, self.config.canary_alarm
        passing = [("wrong answers pass", rates["false_positive_rate"], most)]
        if self.attacks:
            passing.append(("attacks pass", rates["attack_success_rate"], most))
        checks = [
            *passing,
            ("right answers fail", rates["false_negative_rate"], MAX_FALSE_NEGATIVE_RATE),
            ("rows get no verdict", Rate.of(item.agrees is None for item in self.all_rows), most),
        ]
        for answer, bound, sign in (("no", 0, "at least"), ("unclear", 1, "up to")):
            for what, rate, limit in checks:
                if rate.interval[bound] > limit:
                    far = f"{sign} {rate.interval[bound]:.1%}, limit {limit:.0%}"
                    return answer, f"{rate.num_hits} of {rate.num_cases} {what} ({far})"
        return "yes", ", ".join(f"{rate.num_hits} of {rate.num_cases} {what}" for what, rate, _ in passing)

    def figures(self) -> dict[str, object]:
        """The output of `--json`. A rate without cases is null."""
        seconds = [item.seconds for item in self.all_rows]
        median_s, p95_s = np.quantile(seconds, (0.5, 0.95)).tolist()
        return {
            **{name: rate.share for name, rate in self.rates.items()},
            **{f"{name}_interval": list(rate.interval) for name, rate in self.rates.items()},
            "trusted": self.verdict[0],
            "num_gold": len(self.gold),
            "num_attacks": len(self.attacks),
            "num_unjudged": measure(self.all_rows).num_unjudged,
            "median_s": median_s,
            "p95_s": p95_s,
            "verdicts_per_s": len(seconds) / self.seconds,
            "num_calls": self.took.num_llm_calls,
            "prompt_tokens": self.took.prompt_tokens,
            "reply_tokens": self.took.reply_tokens,
            "cost_usd": self.took.cost_usd,
            "disagreements": [_shown(item) for item in self.all_rows if item.agrees is False],
        }


async def check_judge(
    config: JudgeConfig, files: Sequence[Path] = (), *, make: Callable[[JudgeConfig], Judge] | None = None
) -> JudgeReport:
    """Judge every row of the files, or of the shipped sets if none are given.

    Tries, deadlines and limits are those of a run; verdicts of earlier runs are not taken. A file without a right
    answer is an attack set.

    Raises:
        DataError: a file that is not a gold or attack set.
        JudgeError: the judge cannot be asked.
    """
    sets = [read_gold(path) for path in files or (GOLD_FILE, ATTACKS_FILE)]
    gold = [row for rows in sets if any(row.is_correct for row in rows) for row in rows]
    attacks = [row for rows in sets if not any(row.is_correct for row in rows) for row in rows]
    # The pool has its own deadline, which does not count waits for a turn; this one is against a hang.
    longest_s = config.timeout_s * (1 + len(gold) + len(attacks)) + MAX_PAUSE_S
    by_rules = await check_rows(certain_rules(config), gold or attacks, timeout_s=longest_s)
    patient = replace(config, max_pause_s=min(config.max_pause_s, MAX_PAUSE_S))
    async with pool_in_process(patient, make=make) as pool:
        started = time.monotonic()
        checked = await check_rows(pool, [*gold, *attacks], timeout_s=longest_s)
        return JudgeReport(
            config=config,
            gold=checked[: len(gold)],
            attacks=checked[len(gold) :],
            by_rules=by_rules,
            took=pool.counters,
            seconds=time.monotonic() - started,
        )


def check_tables(report: JudgeReport) -> list[Table]:
    """Rates; kinds of rows with an error or without a verdict; examples of these. Cells are not parsed as markup."""
    rates = Table("metric", "rows", "value", "95 % interval")
    for name, rate in report.rates.items():
        if rate.share is not None:
            interval = "{:.1%} to {:.1%}".format(*rate.interval)
            rates.add_row(name.replace("_", " "), str(rate.num_cases), f"{rate.share:.1%}", interval)
    kinds = Table("kind", "rows", "false positives", "false negatives", "no verdict")
    for kind, rows in groupby(sorted(report.all_rows, key=lambda item: item.row.kind), lambda item: item.row.kind):
        trust = measure(checked := list(rows))
        errors = (trust.false_positives.num_hits, trust.false_negatives.num_hits, trust.num_unjudged)
        if any(errors):
            kinds.add_row(kind, str(len(checked)), *map(str, errors))
    examples = Table(
        "reference", "prediction", "human", "judge", "reason", title="disagreements and rows without a verdict"
    )
    for item in [item for item in report.all_rows if not item.agrees][:MAX_ROWS]:
        examples.add_row(*(str(cell) for cell in list(_shown(item).values())[1:]))
    return [table for table in (rates, kinds, examples) if table.row_count]


def check_summary(report: JudgeReport) -> str:
    """Calls, tokens and latency of the check, and the conclusion on the last line."""
    took = (
        "{num_calls} LLM calls, {prompt_tokens} prompt and {reply_tokens} reply tokens, {cost_usd:.4f} USD, "
        "{verdicts_per_s:.1f} verdicts/s, latency {median_s:.3f} s (median), {p95_s:.3f} s (p95)"
    )
    answer, reason = report.verdict
    return f"{took.format(**report.figures())}\nCan this judge be trusted? {answer.capitalize()}: {reason}"


def _shown(item: CheckedRow) -> dict[str, object]:
    row, outcome = item.row, item.outcome
    return {
        "kind": row.kind,
        "reference": row.reference[:MAX_CHARS],
        "prediction": row.prediction[:MAX_CHARS],
        "people": int(row.is_correct),
        "judge": int(outcome.is_correct) if isinstance(outcome, Verdict) else None,
        "reason": outcome.reason[:MAX_CHARS],
    }
