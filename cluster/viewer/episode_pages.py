"""What the pages of episodes show: the table, a group, two evaluations of a sample, and one episode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.records.reading import Row
from cluster.viewer import queries
from cluster.viewer.filters import CHOICES, PRESETS, Filter
from cluster.viewer.index import OPENED
from cluster.viewer.rendering import episode_url, listed_url, run_page
from cluster.viewer.runs import RunFolder
from cluster.viewer.text import load_tokenizer, spans_of
from configs.schema import Config


def episodes(run: RunFolder, chosen: Filter) -> dict[str, Any]:
    """The frame of the table, which asks for its rows and counts itself."""
    return {
        **run_page(run, "episodes", "Episodes"),
        "filter": chosen,
        "choices": CHOICES,
        "presets": PRESETS,
    }


def group(run: RunFolder, rows: Sequence[Row]) -> dict[str, Any]:
    shown = [episode_view(run, row) for row in rows]
    return {**run_page(run, "episodes", f"Group {rows[0]['sample']}"), "episodes": shown, "row": shown[0]["row"]}


def pair(run: RunFolder, found: Sequence[tuple[RunFolder, Row]]) -> dict[str, Any]:
    """One sample in two evaluations: a group of two, perhaps of two runs."""
    shown = [episode_view(owner, row) for owner, row in found]
    return {**run_page(run, "heldout", f"Sample {found[0][1]['sample']}"), "episodes": shown, "row": shown[0]["row"]}


def episode(run: RunFolder, row: Row, chosen: Filter, position: int | None) -> dict[str, Any]:
    """One episode, with its neighbours: in the list that it was opened from, or else in its group."""
    con = run.episodes.cursor()
    siblings = queries.group(con, row["set"], row["file"], row["sample"])
    around = None if position is None else _around_in_list(con, run.name, row, chosen, position)
    return {
        **run_page(run, "episodes", f"Episode {row['sample']}/{row['index']}"),
        **episode_view(run, row),
        "siblings": siblings,
        "around": _around_in_group(run.name, row, siblings) if around is None else around,
        "list_query": None if around is None else chosen.query(),
    }


def _around_in_list(
    con: queries.Connection, run: str, row: Row, chosen: Filter, position: int
) -> dict[str, str] | None:
    """Addresses of the previous and the next one; None where the list has changed and the episode is elsewhere now."""
    start = max(0, position - 1)
    window = dict(enumerate(queries.page(con, chosen, offset=start, limit=position - start + 2), start=start))
    if position not in window or _key(window[position]) != _key(row):
        return None
    there = {"previous": position - 1, "next": position + 1}
    return {name: listed_url(run, window[at], chosen, at) for name, at in there.items() if at in window}


def _around_in_group(run: str, row: Row, siblings: Sequence[Row]) -> dict[str, str]:
    here = next(at for at, other in enumerate(siblings) if _key(other) == _key(row))
    there = {"previous": here - 1, "next": here + 1}
    return {name: episode_url(run, siblings[at]) for name, at in there.items() if 0 <= at < len(siblings)}


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in queries.KEY)


def episode_view(owner: RunFolder, row: Row) -> dict[str, Any]:
    """What is shown of an episode: its turns with tokens, its reward in parts, and whether its picture is there."""
    config = owner.config
    try:
        row, problem = owner.episodes.read(row), ""
        views = owner.pictures.views(row)
    except ValueError as error:
        row, problem = {**row, **dict.fromkeys(OPENED), "turns": []}, str(error)
        views = problem
    tokenizer = load_tokenizer(config.model.path) if isinstance(config, Config) else None
    return {
        "row": row,
        "url": episode_url(owner.name, row),
        "problem": problem,
        "no_picture": views if isinstance(views, str) else "",
        "sizes": [] if isinstance(views, str) else [(n, v.shape[1], v.shape[0]) for n, v in _named(views)],
        "turns": [_turn(turn, row["turns"][:i], tokenizer) for i, turn in enumerate(row["turns"])],
        "reward": _reward_parts(row, config),
        "has_tokenizer": tokenizer is not None,
        "trained": _why_trained(row),
        "owner": owner.name,
    }


def _named(views: Any) -> list[tuple[str, Any]]:
    return [(name, view) for name, view in zip(("quarter", "full"), views, strict=True) if view is not None]


def _turn(turn: Mapping[str, Any], before: Sequence[Mapping[str, Any]], tokenizer: Any) -> dict[str, Any]:
    known = before[-1]["num_prompt_tokens"] + len(before[-1]["completion_ids"]) if before else 0
    return {
        **turn,
        "num_new": turn["num_prompt_tokens"] - known,
        "spans": spans_of(tokenizer, turn) if tokenizer is not None else [],
    }


def _reward_parts(row: Row, config: Config | str) -> dict[str, float] | None:
    """R = R_accuracy + R_format - P_control, by the weights of the run; None where there was no reward."""
    if row["reward"] is None or not isinstance(config, Config):
        return None
    accuracy = config.reward.accuracy_weight * bool(row["is_correct"])
    form = config.reward.format_weight * bool(row["is_well_formed"])
    return {
        "accuracy": accuracy,
        "format": form,
        "penalty": round(accuracy + form - row["reward"], 6),
        "total": row["reward"],
    }


def _why_trained(row: Row) -> str:
    if row["set"] == "heldout":
        return "held-out: never trained on"
    if row["is_trained"] and row["advantage"] is not None:
        return "trained: every sampled token counts with this advantage"
    if row["is_correct"] is None:
        return "masked: no verdict, so it is left out of its group"
    return "not trained: the rewards of its group are equal, or too few of it have a verdict"
