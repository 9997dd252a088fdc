"""What the pages of episodes show: the table, a group, two evaluations of a sample, and one episode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from actors.tools.resize import RESIZE
from actors.views import Crop, Size, shown_size
from cluster.records.reading import Row
from cluster.viewer import queries
from cluster.viewer.boxes import BOTH_VIEWS, Box, boxes_by_view, needed_boxes, readable_view, view_of
from cluster.viewer.filters import Filter, choices, presets
from cluster.viewer.index import OPENED
from cluster.viewer.pictures import Views
from cluster.viewer.rendering import episode_url, listed_url, run_page
from cluster.viewer.runs import RunFolder
from cluster.viewer.text import load_tokenizer, spans_of
from configs.schema import Config


def episodes(run: RunFolder, chosen: Filter) -> dict[str, Any]:
    """The frame of the table, which asks for its rows and counts itself."""
    return {
        **run_page(run, "episodes", "Episodes"),
        "filter": chosen,
        "has_tool_choice": run.has_tool_choice,
        "choices": choices(with_tool_choice=run.has_tool_choice),
        "presets": presets(with_tool_choice=run.has_tool_choice),
    }


def group(run: RunFolder, rows: Sequence[Row]) -> dict[str, Any]:
    return {**run_page(run, "episodes", f"Group {rows[0]['sample']}"), **_side_by_side([(run, row) for row in rows])}


def pair(run: RunFolder, found: Sequence[tuple[RunFolder, Row]]) -> dict[str, Any]:
    """One sample in two evaluations: a group of two, perhaps of two runs."""
    return {**run_page(run, "heldout", f"Sample {found[0][1]['sample']}"), **_side_by_side(found)}


def _side_by_side(found: Sequence[tuple[RunFolder, Row]]) -> dict[str, Any]:
    """The picture stands once, with the views that any of them saw and the region that is needed; the regions that were
    called for are on the pages of the episodes."""
    shown = [episode_view(owner, row) for owner, row in found]
    views = [replace(view, boxes=()) for view in shown[0]["views"]]
    return {"episodes": shown, "row": shown[0]["row"], "picture": {**shown[0], "views": views}}


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
    shown = [] if isinstance(views, str) else _shown(row, views)
    return {
        "row": row,
        "url": episode_url(owner.name, row),
        "problem": problem,
        "no_picture": views if isinstance(views, str) else "",
        "sources": {v.name: episode_url(owner.name, row, "picture", urlencode({"view": v.name})) for v in shown},
        "views": [view for view in shown if view.name in BOTH_VIEWS],
        "crops": {view.name: view for view in shown if view.name not in BOTH_VIEWS},
        "turns": [_turn(turn, row["turns"][:i], tokenizer) for i, turn in enumerate(row["turns"])],
        "calls": Counter(turn["tool"] or RESIZE.name for turn in row["turns"][1:] if turn["view"] is not None),
        "needed": _needed(row),
        "has_tool_choice": owner.has_tool_choice,
        "reward": _reward_parts(row, config),
        "has_tokenizer": tokenizer is not None,
        "trained": _why_trained(row),
        "owner": owner.name,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownView:
    """A picture on a page, with the regions that were called for in it."""

    name: str
    width: int
    height: int
    boxes: Sequence[Box]
    needed: Sequence[Box]
    """The region that the data set says is needed, on the quarter and the full view."""


def _shown(row: Row, views: Views) -> list[ShownView]:
    """The quarter and the full view, whether seen or not, then each region that was seen."""
    full_size: Size = views[1].shape[:2]
    turns = row["turns"]
    boxes, needed = boxes_by_view(turns, full_size), needed_boxes(view_of(row["needed_view"], full_size), full_size)
    both = [view for view, pixels in zip(BOTH_VIEWS, views, strict=True) if pixels is not None]
    seen = (view for turn in turns if isinstance(view := view_of(turn["view"], full_size), Crop))
    sizes = {str(view): shown_size(view, full_size) for view in (*both, *seen)}
    return [
        ShownView(name=name, width=width, height=height, boxes=boxes.get(name, ()), needed=needed.get(name, ()))
        for name, (height, width) in sizes.items()
    ]


def _turn(turn: Mapping[str, Any], before: Sequence[Mapping[str, Any]], tokenizer: Any) -> dict[str, Any]:
    known = before[-1]["num_prompt_tokens"] + len(before[-1]["completion_ids"]) if before else 0
    return {
        **turn,
        "num_new": turn["num_prompt_tokens"] - known,
        "spans": spans_of(tokenizer, turn) if tokenizer is not None else [],
    }


def _needed(row: Row) -> str:
    """Of what the data set says of the sample: `the full view is needed`, or which region of it."""
    if row["need"] == "region":
        view = readable_view(row["needed_view"])
        if not isinstance(view, Crop):
            return "a region is needed"
        return f"a region is needed: x {view.left} to {view.right}, y {view.top} to {view.bottom} of the full view"
    known = {"full": "needed", "quarter": "not needed", None: "perhaps needed: not recorded"}
    return f"the full view is {known[row['need']]}"


PENALTIES = ("control", "area", "budget", "overlong")
"""Parts of a recorded reward that are subtracted."""


def _reward_parts(row: Row, config: Config | str) -> dict[str, Any] | None:
    """R = R_accuracy + R_format + R_box - penalties, as recorded; for older runs, which recorded the sum, by the
    weights of the run. None where there was no reward."""
    if row["reward"] is not None and (parts := row.get("reward_parts")) is not None:
        kinds = {name: parts[name] for name in PENALTIES if parts[name]}
        is_plain = kinds.keys() <= {"control"}
        penalties = {"penalty": kinds.get("control", 0.0)} if is_plain else kinds
        added = {name: parts[name] for name in ("accuracy", "format", "box")}
        return {**added, "penalties": penalties, "is_plain": is_plain, "total": row["reward"]}
    if row["reward"] is None or not isinstance(config, Config):
        return None
    accuracy = config.reward.accuracy_weight * bool(row["is_correct"])
    form = config.reward.format_weight * bool(row["is_well_formed"])
    has_crop = any((turn["view"] or "").startswith("crop:") for turn in row["turns"])
    box = config.reward.box_weight * bool(row["is_correct"] and has_crop)
    return {
        "accuracy": accuracy,
        "format": form,
        "box": box,
        "penalties": {"penalty": round(accuracy + form + box - row["reward"], 6)},
        "is_plain": True,
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
