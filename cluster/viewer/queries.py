"""What the pages ask of the table of episodes. Pure functions of a connection."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import duckdb

from actors.needs import NEEDS, Need
from cluster.records.reading import Row
from cluster.viewer.filters import PRESETS, Filter
from judge.trust.check import Z_95, Rate

Connection = duckdb.DuckDBPyConnection
CALLED = "array_to_string(tools, ' ') AS called"
LISTED = (
    "set", "file", "step", "kind", "sample", '"index"', "question", "reference", "answer", "asked", "needs_full",
    "need", "needed_view", "is_right_tool", "is_correct", "is_well_formed", "status", "reward", "advantage",
    "is_trained", "visual_tokens", "least_visual_tokens", "full_tokens", "generated_tokens", "tool_calls", CALLED,
    "refused_calls", "oldest_version", "newest_version", "judge", "reason",
)  # fmt: skip
"""Columns of a table of episodes, and of a CSV."""
KEY = ("set", "file", "sample", "kind", "index")
"""What names an episode in an address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Of the episodes of one kind: an evaluation's policy, always-quarter or always-full, or a step's rollouts."""

    set: str
    file: str
    step: int
    kind: str
    num: int
    accuracy: Rate
    """Over the episodes that have a verdict."""
    tool_calls: Rate
    tool_calls_needed: Rate
    tool_calls_unneeded: Rate
    num_calls: int
    """Views that tools showed."""
    call_tokens: int
    """Visual tokens of these views."""
    visual_tokens: int
    full_tokens: int
    right_tool: Mapping[Need, Rate]
    """Of the episodes with this need: those that answered after just what is needed."""
    least_tokens: int
    """Visual tokens if each sample of which it is known were shown just what it needs."""
    full_tokens_of_known: int

    @property
    def token_optimum(self) -> float | None:
        return self.least_tokens / self.full_tokens_of_known if self.full_tokens_of_known else None

    @property
    def calls_per_episode(self) -> float:
        return self.num_calls / self.num

    @property
    def tokens_per_call(self) -> float | None:
        return self.call_tokens / self.num_calls if self.num_calls else None

    @property
    def token_ratio(self) -> float | None:
        return self.visual_tokens / self.full_tokens if self.full_tokens else None


def select(con: Connection, sql: str, bound: Sequence[object] = ()) -> list[Row]:
    """Rows as dictionaries."""
    found = con.execute(sql, list(bound))
    names = [column[0] for column in found.description or ()]
    return [dict(zip(names, values, strict=True)) for values in found.fetchall()]


def count(con: Connection, chosen: Filter) -> int:
    where, bound = chosen.where()
    (num,) = con.execute(f"SELECT count(*) FROM episodes WHERE {where}", bound).fetchone() or (0,)
    return int(num)


def page(con: Connection, chosen: Filter, *, offset: int, limit: int) -> list[Row]:
    """Some episodes of a filter, in its order."""
    where, bound = chosen.where()
    sql = f"SELECT {', '.join(LISTED)} FROM episodes WHERE {where} ORDER BY {chosen.order()} LIMIT ? OFFSET ?"
    return select(con, sql, [*bound, limit, offset])


def places(con: Connection, chosen: Filter) -> list[Row]:
    """Where all episodes of a filter lie: set, file, and row in the file."""
    where, bound = chosen.where()
    return select(con, f"SELECT set, file, ordinal FROM episodes WHERE {where} ORDER BY set, file, ordinal", bound)


def counts(con: Connection, chosen: Filter) -> tuple[int, dict[str, int]]:
    """How many episodes a filter has, and how many each preset would have under the rest of it. One pass."""
    rest = Filter(values={name: value for name, value in chosen.values.items() if name != "preset"})
    where, bound = rest.where()
    columns = ", ".join(f"count(*) FILTER ({preset.condition}) AS {name}" for name, preset in PRESETS.items())
    (found,) = select(con, f"SELECT {columns}, count(*) AS total FROM episodes WHERE {where}", bound)
    nums = {name: int(num) for name, num in found.items()}
    total = nums.pop("total")
    return nums.get(chosen.get("preset"), total), nums


def episode(con: Connection, key: Mapping[str, str]) -> Row | None:
    """One episode by its key; None where there is none."""
    if not re.fullmatch(r"\d{1,9}", key.get("index", ""), re.ASCII):
        return None
    where = " AND ".join(f'"{name}" = ?' for name in KEY)
    found = select(con, f"SELECT * FROM episodes WHERE {where} LIMIT 1", [key.get(name, "") for name in KEY])
    return found[0] if found else None


def group(con: Connection, of_set: str, file: str, sample: str) -> list[Row]:
    """The episodes of one sample in one step or evaluation."""
    order = "list_position(['policy', 'always_quarter', 'always_full'], kind), \"index\""
    sql = f"SELECT * FROM episodes WHERE set = ? AND file = ? AND sample = ? ORDER BY {order}"
    return select(con, sql, [of_set, file, sample])


def scores(con: Connection, of_set: str) -> list[Score]:
    """Of each file and kind, oldest first."""
    sql = """
        SELECT file, any_value(step) AS step, kind, count(*) AS num, count(is_correct) AS judged,
          count(*) FILTER (is_correct) AS correct, count(*) FILTER (asked) AS asked,
          count(*) FILTER (needs_full) AS needed, count(*) FILTER (needs_full AND asked) AS asked_needed,
          count(*) FILTER (NOT needs_full) AS unneeded, count(*) FILTER (NOT needs_full AND asked) AS asked_unneeded,
          coalesce(sum(least_visual_tokens), 0) AS least,
          coalesce(sum(full_tokens) FILTER (least_visual_tokens IS NOT NULL), 0) AS full_of_known, RIGHT_TOOL,
          coalesce(sum(tool_calls), 0) AS calls, coalesce(sum(list_sum(call_tokens)), 0) AS call_tokens,
          coalesce(sum(visual_tokens), 0) AS visual, coalesce(sum(full_tokens), 0) AS full_view
        FROM episodes WHERE set = ? GROUP BY file, kind ORDER BY step, file, kind DESC"""
    by_need = ", ".join(
        f"count(*) FILTER (need = '{need}' AND is_right_tool) AS right_{need}, "
        f"count(is_right_tool) FILTER (need = '{need}') AS known_{need}"
        for need in NEEDS
    )
    return [
        Score(
            set=of_set,
            file=row["file"],
            step=row["step"],
            kind=row["kind"],
            num=row["num"],
            accuracy=Rate(num_hits=row["correct"], num_cases=row["judged"]),
            tool_calls=Rate(num_hits=row["asked"], num_cases=row["num"]),
            tool_calls_needed=Rate(num_hits=row["asked_needed"], num_cases=row["needed"]),
            tool_calls_unneeded=Rate(num_hits=row["asked_unneeded"], num_cases=row["unneeded"]),
            num_calls=int(row["calls"]),
            call_tokens=int(row["call_tokens"]),
            visual_tokens=int(row["visual"]),
            full_tokens=int(row["full_view"]),
            right_tool={need: Rate(num_hits=row[f"right_{need}"], num_cases=row[f"known_{need}"]) for need in NEEDS},
            least_tokens=int(row["least"]),
            full_tokens_of_known=int(row["full_of_known"]),
        )
        for row in select(con, sql.replace("RIGHT_TOOL", by_need), [of_set])
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """How a tool was used by the policy, in training or in all evaluations."""

    set: str
    tool: str
    num_calls: int
    num_tokens: int
    """Visual tokens of what it showed."""
    episodes: Rate
    """Those with a call of it, of all."""
    accuracy: Rate
    """Of the episodes with a call of it that have a verdict."""

    @property
    def tokens_per_call(self) -> float:
        return self.num_tokens / self.num_calls


def tool_uses(con: Connection) -> list[ToolUse]:
    """Of each set and tool, the tools that are called most first."""
    sql = """
        WITH played AS (SELECT *, rowid AS id FROM episodes WHERE kind = 'policy'),
        calls AS (SELECT set, id, is_correct, unnest(tools) AS tool, unnest(call_tokens) AS tokens FROM played)
        SELECT set, tool, count(*) AS calls, coalesce(sum(tokens), 0)::BIGINT AS tokens, count(DISTINCT id) AS num,
          count(DISTINCT id) FILTER (is_correct) AS correct,
          count(DISTINCT id) FILTER (is_correct IS NOT NULL) AS judged,
          (SELECT count(*) FROM played WHERE played.set = calls.set) AS played
        FROM calls GROUP BY set, tool ORDER BY set DESC, calls DESC, tool"""
    return [
        ToolUse(
            set=row["set"],
            tool=row["tool"],
            num_calls=row["calls"],
            num_tokens=row["tokens"],
            episodes=Rate(num_hits=row["num"], num_cases=row["played"]),
            accuracy=Rate(num_hits=row["correct"], num_cases=row["judged"]),
        )
        for row in select(con, sql)
    ]


def judges(con: Connection) -> list[Row]:
    """Who decided how often, and what it took."""
    return select(
        con,
        """SELECT coalesce(judge, 'no verdict') AS judge, any_value(judge_model) AS model, count(*) AS num,
          count(*) FILTER (is_correct) AS correct, count(is_correct) AS judged, sum(num_calls)::BIGINT AS calls,
          sum(prompt_tokens)::BIGINT AS prompt_tokens, sum(reply_tokens)::BIGINT AS reply_tokens
        FROM episodes GROUP BY ALL ORDER BY num DESC""".replace("GROUP BY ALL", "GROUP BY episodes.judge"),
    )


def reasons(con: Connection, limit: int = 25) -> list[Row]:
    """The commonest reasons of verdicts, and of missing ones."""
    return select(
        con,
        """SELECT judge, is_correct, reason, count(*) AS num FROM episodes
        GROUP BY judge, is_correct, reason ORDER BY num DESC, reason LIMIT ?""",
        [limit],
    )


def heldout_rows(con: Connection, file: str, kind: str) -> dict[tuple[str, str], Row]:
    """An evaluation by sample: its uid is the row of the data set, the question tells two data sets apart."""
    rows = select(con, "SELECT * FROM episodes WHERE set = 'heldout' AND file = ? AND kind = ?", [file, kind])
    return {(row["sample"], row["question"]): row for row in rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two evaluations, sample by sample."""

    pairs: Sequence[tuple[Row, Row]]
    """Those that both judged, by sample."""
    num_unpaired: int
    """Samples that only one of them has, or that lack a verdict in one."""

    def of(self, first: bool, second: bool) -> list[tuple[Row, Row]]:
        """Pairs with these verdicts."""
        return [pair for pair in self.pairs if (pair[0]["is_correct"], pair[1]["is_correct"]) == (first, second)]

    @property
    def difference(self) -> tuple[float, float, float] | None:
        """Second minus first accuracy with its 95 % interval, of paired proportions; None without pairs."""
        num = len(self.pairs)
        if not num:
            return None
        won, lost = len(self.of(False, True)), len(self.of(True, False))
        share = (won - lost) / num
        half = Z_95 * sqrt(max(0.0, won + lost - (won - lost) ** 2 / num)) / num
        return share, max(-1.0, share - half), min(1.0, share + half)


def compare(first: Mapping[tuple[str, str], Row], second: Mapping[tuple[str, str], Row]) -> Comparison:
    both = sorted(first.keys() & second.keys(), key=lambda key: (len(key[0]), key))
    pairs = [(first[key], second[key]) for key in both]
    judged = [pair for pair in pairs if None not in (pair[0]["is_correct"], pair[1]["is_correct"])]
    return Comparison(pairs=judged, num_unpaired=len(first.keys() | second.keys()) - len(judged))
