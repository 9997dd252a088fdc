"""Comparisons as tables for people: the rows of the paper's Table 2, Fig. 4 and Fig. 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from cluster.evaluation.comparison import PARTIAL, RIGHT_TOOL, Comparison, Estimate
from cluster.evaluation.suites import HELDOUT

PART_COLUMNS = ("accuracy", "precision", "recall", "yes_ratio")
"""What POPE reports besides its score."""


def result_tables(
    comparisons: Sequence[Comparison], means: Mapping[str, Estimate], *, has_tool_choice: bool = False
) -> list[Table]:
    """Scores, what they cost, where there is one the breakdown, and which tool was the right one.

    `has_tool_choice`: the policy has more to choose from than the full view.
    """
    tables = [_scores(comparisons, means), _costs(comparisons), *map(_parts, filter(_has_parts, comparisons))]
    told = [one for one in comparisons if _value(one, "right_tool_share") is not None]
    regions = any(_value(one, RIGHT_TOOL["region"]) is not None for one in told)
    return [*tables, _right_tools(told)] if told and (has_tool_choice or regions) else tables


def result_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """What a table does not say: samples that are in no figure, and the noise of the judge."""
    lines = []
    for one in comparisons:
        if one.num_compared < one.num_samples:
            lines.append(
                f"{one.suite}: {one.num_samples - one.num_compared} of {one.num_samples} samples are in no figure: "
                f"{one.num_lost} episodes lost, {one.num_unscored} without a verdict"
            )
        if one.judge_sd:
            sd = ", ".join(f"{kind} {value:.2f}" for kind, value in one.judge_sd.items())
            lines.append(f"{one.suite}: standard deviation over {one.num_judgements} judgements: {sd}")
    return lines


def _scores(comparisons: Sequence[Comparison], means: Mapping[str, Estimate]) -> Table:
    heads = ("n", "metric", "policy", "always quarter", "always full", "policy / full", "quarter / full")
    table = _table("Scores, greedy, with 95 % intervals (Table 2)", "suite", heads)
    for one in comparisons:
        scores = [_score(one, name) for name in ("score", "score_quarter", "score_full")]
        shares = [share(one.estimates.get(name)) for name in ("share_of_full", "share_of_full_quarter")]
        table.add_row(one.suite, str(one.num_compared), one.metric, *scores, *shares)
    if len(comparisons) > 1:
        shares = [share(means.get(name)) for name in ("share_of_full", "share_of_full_quarter")]
        table.add_row("average", "", "", "", "", "", *shares)
    return table


def _costs(comparisons: Sequence[Comparison]) -> Table:
    """A row per figure, so that a terminal has room for their intervals."""
    columns = {
        "tool calls": "ask_share",
        "if needed": "ask_share_needed",
        "if not needed": "ask_share_unneeded",
        "over-asking": "over_asking",
        "under-asking": "under_asking",
        "gain by tools": "tool_gain",
        "visual tokens": "visual_token_share",
        "generated tokens": "generated_token_share",
        "time": "time_share",
    }
    title = "Tool calls (Fig. 4), tokens and time against always-full (Fig. 5)"
    table = _table(title, "", [one.suite for one in comparisons])
    for head, name in columns.items():
        if any(_value(one, name) is not None for one in comparisons):
            table.add_row(head, *(_cell(one, name) for one in comparisons))
    return table


def _right_tools(comparisons: Sequence[Comparison]) -> Table:
    columns = {f"{need} needed": name for need, name in RIGHT_TOOL.items()}
    columns |= {"worst": "right_tool_share", "visual tokens": "visual_token_share", "optimum": "visual_token_optimum"}
    table = _table("Answered after just what is needed, by need", "suite", columns)
    for one in comparisons:
        table.add_row(one.suite, *(_cell(one, name) for name in columns.values()))
    return table


def _cell(one: Comparison, name: str) -> str:
    text = share(one.estimates.get(name))
    return f"{text}, n={one.num_cases(name)}" if name in PARTIAL and text != "-" else text


def _parts(one: Comparison) -> Table:
    """Per category: the three scores, and the policy's further figures where the metric has some."""
    policy = one.parts["policy"]
    more = [name for name in PART_COLUMNS if any(name in part for part in policy.values())]
    table = _table(one.suite, "part", ("n", "policy", "always quarter", "always full", *more))
    for name in sorted(policy):
        scores = [f"{part[name]['score']:.1f}" for part in one.parts.values()]
        table.add_row(name, f"{policy[name]['n']:.0f}", *scores, *(f"{policy[name][key]:.1f}" for key in more))
    return table


def _has_parts(one: Comparison) -> bool:
    return len(one.parts.get("policy", ())) > 1


def _table(title: str, first: str, heads: Sequence[str] | Mapping[str, str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(first, no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right")
    return table


def _value(one: Comparison, name: str) -> float | None:
    return one.estimates[name].value if name in one.estimates else None


def _score(one: Comparison, name: str) -> str:
    estimate = one.estimates.get(name)
    if one.suite == HELDOUT:
        return share(estimate)
    if estimate is None or estimate.value is None or estimate.low is None or estimate.high is None:
        return "-"
    return f"{estimate.value:.1f} ({estimate.low:.1f} to {estimate.high:.1f})"


def share(estimate: Estimate | None) -> str:
    """`63.0% (58.8 to 67.0)`."""
    if estimate is None or estimate.value is None or estimate.low is None or estimate.high is None:
        return "-"
    return f"{estimate.value:.1%} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"
