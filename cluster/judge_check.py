"""`visionthink judge check`: the configured judge against settled rows, as figures and as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from configs.judges import JudgeConfig
from judge.chain import make_judge
from judge.goldset import ATTACKS_FILE, GOLD_FILE, GoldRow, read_gold
from judge.trust import CheckedRow, Rate, by_kind, check_rows, measure
from judge.verdict import Judge, Verdict

MAX_SHOWN_CHARS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeReport:
    """What a judge said about settled rows. Gold holds right and wrong answers, attacks hold wrong ones alone."""

    gold: tuple[CheckedRow, ...]
    """Rows that this judge is meant to decide."""
    beyond: tuple[CheckedRow, ...]
    """Gold rows that need knowledge, where the judge has written rules alone: shown, but in no rate."""
    attacks: tuple[CheckedRow, ...]

    @property
    def attack_success(self) -> Rate:
        return measure(self.attacks).false_positives

    @property
    def disagreements(self) -> tuple[CheckedRow, ...]:
        return tuple(row for row in (*self.gold, *self.attacks) if row.agrees is False)

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
            "disagreements": [_shown(row) for row in self.disagreements],
        }


async def check_judge(config: JudgeConfig, files: Sequence[Path], *, judge: Judge | None = None) -> JudgeReport:
    """Ask about every row of the files, of the shipped sets where there is none.

    Args:
        judge: stands in for the configured one.

    Raises:
        DataError: a file that is not a gold or attack set.
    """
    sets = [read_gold(path) for path in files or (GOLD_FILE, ATTACKS_FILE)]
    gold = [row for rows in sets if not _is_attack_set(rows) for row in rows]
    attacks = [row for rows in sets if _is_attack_set(rows) for row in rows]
    if judge is None:
        judge = make_judge(config)
    checked = await check_rows(judge, [*gold, *attacks], timeout_s=config.timeout_s)
    of_gold, rules_alone = checked[: len(gold)], not config.has_llm
    return JudgeReport(
        gold=tuple(row for row in of_gold if row.row.is_decidable_by_rules or not rules_alone),
        beyond=tuple(row for row in of_gold if rules_alone and not row.row.is_decidable_by_rules),
        attacks=checked[len(gold) :],
    )


def _is_attack_set(rows: Sequence[GoldRow]) -> bool:
    return not any(row.is_correct for row in rows)


def check_tables(report: JudgeReport) -> list[Table]:
    """By kind, and the disagreements."""
    gold, attacks = _kinds_table("gold set", report.gold), _kinds_table("attack set", report.attacks)
    tables = [table for table in (gold, attacks) if table.row_count > 1]
    if report.beyond:
        tables.append(_kinds_table("gold rows that rules alone cannot settle (in no rate)", report.beyond))
    if report.disagreements:
        table = Table("kind", "reference", "prediction", "people", "judge", "reason", title="disagreements")
        for row in report.disagreements:
            table.add_row(*(escape(str(cell)) for cell in _shown(row).values()))
        tables.append(table)
    return tables


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
