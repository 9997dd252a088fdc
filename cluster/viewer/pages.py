"""What each page shows: plain values for its template, and the rendering, in which all text is escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import jinja2
from markupsafe import Markup

from actors.hub import model_name
from cluster.records.events import WARNINGS
from cluster.records.reading import Row
from cluster.status.table import short_time
from cluster.viewer import queries
from cluster.viewer.alerts import alerts
from cluster.viewer.charts import line_charts, trade_off
from cluster.viewer.filters import CHOICES, PRESETS, Filter
from cluster.viewer.index import OPENED
from cluster.viewer.queries import Score
from cluster.viewer.runs import RunBook, RunFolder, differing_settings, flat_settings
from cluster.viewer.text import load_tokenizer, spans_of, visible
from configs.schema import Config
from judge.trust.check import Rate

HERE = Path(__file__).parent
STATIC = HERE / "static"
KIND_NAMES = {"policy": "policy", "always_quarter": "always quarter", "always_full": "always full"}
PAGES = (
    ("", "Overview"), ("curves", "Curves"), ("episodes", "Episodes"), ("heldout", "Held-out"), ("judge", "Judge"),
    ("system", "System"), ("events", "Events"),
)  # fmt: skip
MAX_EVENTS = 500
MAX_FLIPS = 200
EVENT_FIELDS = ("log", "num_shown", "max_events", "warnings")


def kind_name(kind: str) -> str:
    return KIND_NAMES.get(kind, kind)


def percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def number(figure: float | None, digits: int = 3) -> str:
    return "–" if figure is None else f"{figure:,.{digits}f}"


def signed(figure: float | None) -> str:
    return "–" if figure is None else f"{figure:+.3f}"


def clock_time(at: float) -> str:
    return f"{datetime.fromtimestamp(at):%Y-%m-%d %H:%M:%S}"


def episode_url(run: str, row: Mapping[str, Any], page: str = "episode", extra: str = "") -> str:
    """Of an episode, of its group or of its picture."""
    names = ("set", "file", "sample") if page == "group" else queries.KEY
    key = urlencode({name: row[name] for name in names})
    return f"/r/{quote(run, safe='')}/{page}?{key}" + (f"&{extra}" if extra else "")


def listed_url(run: str, row: Mapping[str, Any], chosen: Filter, position: int) -> str:
    """Of an episode as a member of a list: the list goes along, so that its page knows the next one."""
    return episode_url(run, row, extra=urlencode({"list": chosen.query(), "pos": position}))


def verdict_of(row: Mapping[str, Any]) -> str:
    return {True: "right", False: "wrong", None: "no verdict"}[row["is_correct"]]


def make_templates() -> jinja2.Environment:
    """Everything that is put into a page is escaped, and characters that act unseen are shown."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup | int | float) else visible(value),
    )
    templates.filters |= {
        "percent": percent, "number": number, "signed": signed, "clock_time": clock_time, "short_time": short_time,
        "quote": lambda name: quote(name, safe=""), "kind_name": kind_name,
    }  # fmt: skip
    templates.globals |= {"KIND_NAMES": KIND_NAMES, "episode_url": episode_url, "verdict_of": verdict_of}
    return templates


def runs_page(book: RunBook) -> dict[str, Any]:
    return {"title": "Runs", "runs": [_run_line(run) for run in book.all().values()], "live": ""}


def _run_line(run: RunFolder) -> dict[str, Any]:
    look, config = run.look, run.config
    return {
        "name": run.name,
        "path": str(run.path),
        "state": run.state,
        "step": int(run.last("step") or 0),
        "num_steps": look.snapshot.status.num_steps if look else None,
        "heldout": run.heldout(),
        "accuracy": run.last("reward/accuracy"),
        "ratio": run.last("heldout/visual_token_share") or run.last("policy/visual_token_share"),
        "ask_share": run.last("policy/ask_share"),
        "model": model_name(config.model.path) if isinstance(config, Config) else "unreadable settings",
        "penalty": config.reward.penalty if isinstance(config, Config) else "–",
    }


def compare_page(runs: Sequence[RunFolder]) -> dict[str, Any]:
    return {
        "title": "Compare " + ", ".join(run.name for run in runs),
        "runs": [_run_line(run) for run in runs],
        "differences": differing_settings(runs),
        "charts": line_charts({run.name: run.metrics for run in runs}, "curves"),
        "live": "",
    }


def run_page(run: RunFolder, page: str, title: str) -> dict[str, Any]:
    """What all pages of a run have."""
    return {
        "title": f"{title} · {run.name}",
        "run": run.name,
        "run_url": f"/r/{quote(run.name, safe='')}",
        "page": page,
        "pages": PAGES,
        "state": run.state,
        "live": run.pulse if run.state in ("running", "starting") else "",
    }


def overview(run: RunFolder) -> dict[str, Any]:
    con, config, look = run.episodes.cursor(), run.config, run.look
    evaluations = queries.scores(con, "heldout")
    last = [score for score in evaluations if score.file == evaluations[-1].file]
    found = [(kind_name(s.kind), s.kind, s) for s in last]
    found += [(f"step {s.step}", "earlier", s) for s in evaluations if s.kind == "policy" and s not in last]
    points = [
        (name, style, score.token_ratio, score.accuracy.share, score.accuracy.interval)
        for name, style, score in found
        if score.token_ratio is not None and score.accuracy.share is not None
    ]
    wanted = config.train.prompts_per_step if isinstance(config, Config) else 0
    cause = look.cause if look else ""
    return {
        **run_page(run, "", "Overview"),
        "look": look,
        "step": int(run.last("step") or 0),
        "alerts": alerts(run.metrics, prompts_per_step=wanted, unreadable=run.episodes.unreadable, cause=cause),
        "scores": last,
        "trade_off": trade_off(points),
        "rollouts": _rollouts(queries.scores(con, "training")),
        "presets": PRESETS,
        "preset_counts": queries.counts(con, Filter(values={"set": "training"}))[1],
        "settings": flat_settings(config) if isinstance(config, Config) else {},
        "settings_error": "" if isinstance(config, Config) else config,
    }


def _rollouts(scores: Sequence[Score]) -> dict[str, Any]:
    """All rollouts of the training together, and those of the last step."""
    return {
        "num_episodes": sum(score.num for score in scores),
        "num_steps": len(scores),
        "last": scores[-1] if scores else None,
    }


def curves(run: RunFolder) -> dict[str, Any]:
    charts = line_charts({run.name: run.metrics}, "curves")
    return {**run_page(run, "curves", "Curves"), "charts": charts}


def system(run: RunFolder) -> dict[str, Any]:
    charts = line_charts({run.name: run.metrics}, "system", [logged.event for logged in run.events])
    return {**run_page(run, "system", "System"), "charts": charts, "look": run.look}


def judge(run: RunFolder) -> dict[str, Any]:
    con, config = run.episodes.cursor(), run.config
    return {
        **run_page(run, "judge", "Judge"),
        "judges": queries.judges(con),
        "reasons": queries.reasons(con),
        "charts": [chart for chart in line_charts({run.name: run.metrics}, "judge") if _moves(chart)],
        "chain": ", ".join(config.judge.chain) if isinstance(config, Config) else "",
        "num_disputed": queries.count(con, Filter(values={"preset": "disagree"})),
        "num_masked": queries.count(con, Filter(values={"preset": "masked"})),
        "rate": lambda row: Rate(num_hits=row["correct"], num_cases=row["judged"]),
    }


def _moves(chart: Any) -> bool:
    """Charts of what never happened are left out of the judge's page."""
    return any(value for line in chart.lines for _, value, _, _ in line.points)


def events(run: RunFolder, kind: str) -> dict[str, Any]:
    log = run.events
    shown = [logged for logged in log if not kind or logged.event.kind == kind]
    return {
        **run_page(run, "events", "Events"),
        "log": shown[: -MAX_EVENTS - 1 : -1],
        "num_shown": len(shown),
        "max_events": MAX_EVENTS,
        "kinds": Counter(logged.event.kind for logged in log),
        "kind": kind,
        "warnings": WARNINGS,
    }


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


def heldout(run: RunFolder, book: RunBook, first: str, second: str, kind: str) -> dict[str, Any]:
    """All evaluations, and two of them sample by sample. An evaluation is named RUN/FILE."""
    scores = queries.scores(run.episodes.cursor(), "heldout")
    names = list(dict.fromkeys(f"{run.name}/{score.file}" for score in scores))
    others = [other for other in book.all().values() if other.name != run.name]
    names += [f"{o.name}/{path.stem}" for o in others for path in sorted((o.path / "heldout").glob("*.parquet"))]
    comparison = None
    if first and second:
        sides = [_evaluation(book, name, kind) for name in (first, second)]
        comparison = queries.compare(*sides)
    return {
        **run_page(run, "heldout", "Held-out"),
        "scores": scores,
        "names": names,
        "first": first or (names[0] if names else ""),
        "second": second or (names[min(1, len(names) - 1)] if names else ""),
        "kind": kind,
        "comparison": comparison,
        "max_flips": MAX_FLIPS,
        "pair_url": lambda key: (
            f"/r/{quote(run.name, safe='')}/pair?"
            + urlencode({"a": first, "b": second, "kind": kind, "sample": key["sample"]})
        ),
    }


def _evaluation(book: RunBook, name: str, kind: str) -> dict[tuple[str, str], Row]:
    run, file = split_evaluation(book, name)
    return queries.heldout_rows(run.episodes.cursor(), file, kind)


def split_evaluation(book: RunBook, name: str) -> tuple[RunFolder, str]:
    """Raises ValueError for an evaluation that is not there."""
    run_name, _, file = name.rpartition("/")
    run = book.get(run_name)
    if run is None:
        raise ValueError(f"{name!r} is no evaluation: give RUN/FILE, such as tiny/step-000020")
    return run, file
