"""The policy against always-full and always-quarter on one suite: the rows of the paper's Table 2, Fig. 4 and Fig. 5.

All figures come from the same samples, those with a score in all three ways, and so do their 95 % intervals: units are
drawn with replacement, the same ones for all ways (a paired bootstrap). Pure.

    n samples; U units of them; B draws of units, the first of which is the data itself
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from actors.data.benchmarks.row import BenchmarkRow
from actors.needs import NEEDS, Need
from actors.play import Kind
from cluster.evaluation.transcript import Play
from cluster.heldout import KINDS
from judge.benchmarks.grading import PASSING_SCORE
from judge.benchmarks.scores import Floats, Score, complete_rows, parts_of
from judge.trust.check import Rate

NUM_DRAWS = 2000
POLICY, QUARTER, FULL = KINDS
RIGHT_TOOL: Mapping[Need, str] = {need: f"right_tool_share_{need}" for need in NEEDS}
PARTIAL = frozenset(
    {"ask_share_needed", "ask_share_unneeded", "over_asking", "under_asking", "right_tool_share", *RIGHT_TOOL.values()}
)
"""Figures of a part of the samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval; None where nothing was counted."""

    value: float | None
    low: float | None = None
    high: float | None = None
    num_cases: int = 0
    """Samples that it counts, where these are fewer than all compared ones."""

    def json(self) -> list[float | None]:
        return [self.low, self.high]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    suite: str
    metric: str
    num_samples: int
    """Samples that were to be played."""
    num_compared: int
    """Samples with a score in all three ways: n of every figure."""
    num_lost: int
    """Episodes that failed, or whose row is unusable, over all ways."""
    num_unscored: int
    """Episodes without a verdict, over all ways: in no figure."""
    estimates: Mapping[str, Estimate]
    draws: Mapping[str, Floats]
    """[B] of the shares that an average over suites needs."""
    parts: Mapping[Kind, Mapping[str, Mapping[str, float]]]
    judge_sd: Mapping[Kind, float]
    """Standard deviation of the score over judgements of the same answers; empty with one judgement."""
    num_judgements: int

    def num_cases(self, name: str) -> int:
        """The n of a figure."""
        return self.estimates[name].num_cases if name in PARTIAL else self.num_compared

    def figures(self) -> dict[str, Any]:
        """As `--json` prints it: values by name, and their intervals beside them."""
        return {
            "metric": self.metric,
            "n": self.num_compared,
            "num_samples": self.num_samples,
            "num_lost": self.num_lost,
            "num_unscored": self.num_unscored,
            **{name: estimate.value for name, estimate in self.estimates.items()},
            "intervals": {name: estimate.json() for name, estimate in self.estimates.items()},
            "num_cases": {name: self.num_cases(name) for name in self.estimates},
            "parts": self.parts,
            "judge_sd": self.judge_sd,
            "num_judgements": self.num_judgements,
        }


def compare(
    suite: str,
    metric: Score,
    plays: Mapping[tuple[Kind, str], Play],
    rows: Mapping[str, BenchmarkRow],
    *,
    num_samples: int,
    num_draws: int = NUM_DRAWS,
) -> Comparison:
    """Compare the recorded plays of the samples in `rows`, of `num_samples` that were to be played."""
    scored = [sample for sample in rows if all(_score(plays, kind, sample) is not None for kind in KINDS)]
    places = complete_rows([rows[sample] for sample in scored])
    samples = [scored[place] for place in places]
    kept = [rows[sample] for sample in samples]
    chosen = {kind: [plays[kind, sample] for sample in samples] for kind in KINDS}
    recorded = [plays[kind, sample] for kind in KINDS for sample in rows if (kind, sample) in plays]
    scores = {kind: np.array([play.score for play in chosen[kind]], dtype=float) for kind in KINDS}
    unit_n = _units(kept)
    weights_BU = draw_units(unit_n, kept, num_draws, seed=zlib.crc32(suite.encode()))
    draws = _score_draws(metric, kept, scores, weights_BU) if kept else {}
    estimates = {name: _estimate(values, metric, scores, name) for name, values in draws.items()}
    for name, (hits_n, cases_n) in _ratios(chosen, scores).items():
        ratio_B = _ratio(hits_n, cases_n, unit_n, weights_BU)
        draws[name] = ratio_B
        estimates[name] = replace(_interval(ratio_B, hits_n, cases_n), num_cases=int((cases_n > 0).sum()))
    if told := [name for name in RIGHT_TOOL.values() if estimates[name].num_cases]:
        draws["right_tool_share"] = np.min([draws[name] for name in told], axis=0)
        estimates["right_tool_share"] = _least(draws["right_tool_share"], [estimates[name] for name in told])
    num_judgements = min((len(play.scores) for kind in KINDS for play in chosen[kind] if play.answer), default=0)
    return Comparison(
        suite=suite,
        metric=metric.name,
        num_samples=num_samples,
        num_compared=len(samples),
        num_lost=num_samples * len(KINDS) - len(recorded),
        num_unscored=sum(play.score is None for play in recorded),
        estimates=estimates,
        draws=draws,
        parts={kind: parts_of(suite, kept, scores[kind]) for kind in KINDS} if kept else {},
        judge_sd=_judge_sd(metric, kept, chosen, num_judgements),
        num_judgements=num_judgements,
    )


def average(comparisons: Sequence[Comparison]) -> dict[str, Estimate]:
    """Table 2's last column: the mean over suites of the shares of always-full's score, and of the visual tokens."""
    names = ("share_of_full", "share_of_full_quarter", "visual_token_share", "ask_share")
    found = [comparison for comparison in comparisons if comparison.num_compared]
    means = {name: np.mean([comparison.draws[name] for comparison in found], axis=0) for name in names if found}
    return {name: _plain_interval(values_B) for name, values_B in means.items()}


def _score(plays: Mapping[tuple[Kind, str], Play], kind: Kind, sample: str) -> float | None:
    play = plays.get((kind, sample))
    return None if play is None else play.score


def _units(rows: Sequence[BenchmarkRow]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """[n] the unit of each row, counted from 0; rows of a unit stand together."""
    starts = [not row.unit or at == 0 or row.unit != rows[at - 1].unit for at, row in enumerate(rows)]
    return np.cumsum(starts, dtype=np.int64) - 1


def draw_units(
    unit_n: np.ndarray[Any, np.dtype[np.int64]], rows: Sequence[BenchmarkRow], num_draws: int, *, seed: int
) -> Floats:
    """[1 + B, U] how often each unit is drawn: once each, then B draws with replacement.

    Where units have several rows (MME), each sub-task is drawn for itself: its score counts as one part of a sum.
    """
    num_units = int(unit_n[-1]) + 1 if len(unit_n) else 0
    weights = np.ones((1 + num_draws, num_units))
    stratum_of = {int(unit): row.categories[0] if row.unit else "" for unit, row in zip(unit_n, rows, strict=True)}
    random = np.random.default_rng(seed)
    for stratum in sorted(set(stratum_of.values())):
        units = [unit for unit, of in stratum_of.items() if of == stratum]
        weights[1:, units] = random.multinomial(len(units), np.full(len(units), 1 / len(units)), size=num_draws)
    return weights


def _score_draws(
    metric: Score, rows: Sequence[BenchmarkRow], scores: Mapping[Kind, Floats], weights_BU: Floats
) -> dict[str, Floats]:
    """[B] scores of the three ways, their difference and their shares of always-full."""
    policy, quarter, full = (metric.of(weights_BU @ metric.sums(rows, scores[kind])) for kind in KINDS)
    return {
        "score": policy,
        "score_quarter": quarter,
        "score_full": full,
        "difference_to_full": policy - full,
        "share_of_full": _divided(policy, full),
        "share_of_full_quarter": _divided(quarter, full),
    }


def _ratios(chosen: Mapping[Kind, Sequence[Play]], scores: Mapping[Kind, Floats]) -> dict[str, tuple[Floats, Floats]]:
    """Name to (part, whole), [n] each: figures that are a sum over samples divided by another one."""

    def of(kind: Kind, name: str) -> Floats:
        return np.array([getattr(play, name) for play in chosen[kind]], dtype=float)

    asked, ones = of(POLICY, "asked"), np.ones(len(chosen[POLICY]))
    right = {kind: (scores[kind] >= PASSING_SCORE).astype(float) for kind in KINDS}
    only_full = (1 - right[QUARTER]) * right[FULL]
    # Tools against none from the same first view (MED, `cluster.records.tool_metrics`), where tools were on offer.
    began_full = (1 - asked) * (of(POLICY, "num_visual_tokens") == of(FULL, "num_visual_tokens"))
    offered = 1 - began_full
    gained, lost = right[POLICY] * (1 - right[QUARTER]) * offered, (1 - right[POLICY]) * right[QUARTER] * offered
    needs = np.array([play.needs_full is True for play in chosen[POLICY]], dtype=float)
    needs_not = np.array([play.needs_full is False for play in chosen[POLICY]], dtype=float)
    known = np.array([play.is_right_tool is not None for play in chosen[POLICY]], dtype=float)
    right_tool = np.array([play.is_right_tool is True for play in chosen[POLICY]], dtype=float)
    least = np.array([play.least_visual_tokens or 0 for play in chosen[POLICY]], dtype=float)
    is_of = {need: np.array([play.need == need for play in chosen[POLICY]], dtype=float) for need in NEEDS}
    return {
        **{RIGHT_TOOL[need]: (right_tool * is_of[need], known * is_of[need]) for need in NEEDS},
        "visual_token_optimum": (least * known, of(FULL, "num_visual_tokens") * known),
        "ask_share": (asked, ones),
        "ask_share_needed": (asked * needs, needs),
        "ask_share_unneeded": (asked * needs_not, needs_not),
        "over_asking": (asked * right[QUARTER], right[QUARTER]),
        "under_asking": ((1 - asked) * only_full, only_full),
        "tool_gain": (gained - lost, offered),
        "tool_gain_by_call": (gained * asked, offered),
        "tool_gain_by_prompt": (gained * (1 - asked), offered),
        "tool_harm_by_call": (lost * asked, offered),
        "tool_harm_by_prompt": (lost * (1 - asked), offered),
        "well_formed_share": (of(POLICY, "is_well_formed"), ones),
        "visual_token_share": (of(POLICY, "num_visual_tokens"), of(FULL, "num_visual_tokens")),
        "generated_token_share": (of(POLICY, "num_generated_tokens"), of(FULL, "num_generated_tokens")),
        "time_share": (of(POLICY, "seconds"), of(FULL, "seconds")),
        "time_share_quarter": (of(QUARTER, "seconds"), of(FULL, "seconds")),
    }


def _ratio(hits_n: Floats, cases_n: Floats, unit_n: np.ndarray[Any, np.dtype[np.int64]], weights_BU: Floats) -> Floats:
    num_units = weights_BU.shape[1]
    hits_U, cases_U = (np.bincount(unit_n, weights=values, minlength=num_units) for values in (hits_n, cases_n))
    return _divided(weights_BU @ hits_U, weights_BU @ cases_U)


def _divided(part: Floats, whole: Floats) -> Floats:
    """NaN where the whole is 0: such a draw says nothing."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole != 0)


def _plain_interval(values_B: Floats) -> Estimate:
    value, draws = values_B[0], values_B[1:]
    draws = draws[~np.isnan(draws)]
    if np.isnan(value) or not len(draws):
        return Estimate(value=None)
    low, high = np.percentile(draws, [2.5, 97.5])
    return Estimate(value=float(value), low=float(low), high=float(high))


def _interval(values_B: Floats, hits_n: Floats, cases_n: Floats) -> Estimate:
    """The bootstrap's; Wilson's for a proportion of 0 or 1, which looks certain however often it is drawn again."""
    found = _plain_interval(values_B)
    if found.value in (0.0, 1.0) and {*np.unique(hits_n), *np.unique(cases_n)} <= {0.0, 1.0}:
        low, high = Rate(num_hits=int(hits_n.sum()), num_cases=int(cases_n.sum())).interval
        return Estimate(value=found.value, low=low, high=high)
    return found


def _least(values_B: Floats, shares: Sequence[Estimate]) -> Estimate:
    """Of the least of several shares; where a bootstrap shows no spread, the interval of the least certain one."""
    found, num_cases = _plain_interval(values_B), sum(share.num_cases for share in shares)
    if found.low == found.high:
        found = min(shares, key=lambda share: (share.value or 0.0, share.low or 0.0))
    return replace(found, num_cases=num_cases)


def _estimate(values_B: Floats, metric: Score, scores: Mapping[Kind, Floats], name: str) -> Estimate:
    """Of a score, a difference or a share of scores.

    Where a bootstrap shows no spread, Wilson's interval takes its place: of a score of 0 or the best one; and, where no
    sample differs between two ways, of the rate at which samples would differ.
    """
    found = _plain_interval(values_B)
    if found.value is None or found.low != found.high:
        return found
    kind: Kind = QUARTER if name.endswith("quarter") else FULL if name == "score_full" else POLICY
    num_samples, full = len(scores[FULL]), scores[FULL].mean()
    if name.startswith("score"):
        if len(set(scores[kind])) > 1 or scores[kind][0] not in (0.0, 1.0):
            return found
        low, high = Rate(num_hits=int(scores[kind].sum()), num_cases=num_samples).interval
        best = found.value or metric.best  # a part of MME has a lower best score
        return Estimate(value=found.value, low=low * best, high=high * best)
    if not np.array_equal(scores[kind], scores[FULL]) or not full:
        return found
    unseen = Rate(num_hits=0, num_cases=num_samples).interval[1]
    margin = unseen * metric.best if name.startswith("difference") else unseen / float(full)
    return Estimate(value=found.value, low=found.value - margin, high=found.value + margin)


def _judge_sd(
    metric: Score, rows: Sequence[BenchmarkRow], chosen: Mapping[Kind, Sequence[Play]], num_judgements: int
) -> dict[Kind, float]:
    if num_judgements < 2:
        return {}

    def score_of(kind: Kind, run: int) -> float:
        scores = np.array([play.scores[min(run, len(play.scores) - 1)] for play in chosen[kind]], dtype=float)
        return float(metric.of(metric.sums(rows, scores).sum(axis=0, keepdims=True))[0])

    return {kind: float(np.std([score_of(kind, run) for run in range(num_judgements)], ddof=1)) for kind in KINDS}
