"""What each page of a run shows, but for those of episodes: plain values for its template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlencode

from actors.hub import model_name
from actors.tools.resize import RESIZE
from cluster.records.events import WARNINGS
from cluster.records.reading import Row
from cluster.viewer import queries
from cluster.viewer.alerts import alerts
from cluster.viewer.charts import line_charts, trade_off
from cluster.viewer.filters import Filter, presets
from cluster.viewer.queries import Score, ToolUse
from cluster.viewer.rendering import kind_name, run_page
from cluster.viewer.runs import RunBook, RunFolder, differing_settings, settings_text
from configs.schema import Config
from judge.trust.check import Rate

MAX_EVENTS = 500
MAX_FLIPS = 200
EVENT_FIELDS = ("log", "num_shown", "max_events", "warnings")


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
        "ratio": _newest(run, "visual_token_share"),
        "ask_share": run.last("policy/ask_share"),
        "calls_per_episode": run.last("policy/calls_per_episode"),
        "tokens_per_call": run.last("policy/tokens_per_call"),
        "right_tool": _newest(run, "right_tool_share"),
        "optimum": _newest(run, "visual_token_optimum"),
        "model": model_name(config.model.path) if isinstance(config, Config) else "unreadable settings",
        "penalty": config.reward.penalty if isinstance(config, Config) else "–",
    }


def _newest(run: RunFolder, figure: str) -> float | None:
    """Of the last evaluation, or else of the last step."""
    heldout = run.last(f"heldout/{figure}")
    return run.last(f"policy/{figure}") if heldout is None else heldout


def compare_page(runs: Sequence[RunFolder]) -> dict[str, Any]:
    return {
        "title": "Compare " + ", ".join(run.name for run in runs),
        "runs": [_run_line(run) for run in runs],
        "has_tool_choice": any(run.has_tool_choice for run in runs),
        "differences": differing_settings(runs),
        "charts": line_charts({run.name: run.metrics for run in runs}, "curves"),
        "live": "",
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
    uses = queries.tool_uses(con)
    wanted = config.train.prompts_per_step if isinstance(config, Config) else 0
    cause = look.cause if look else ""
    return {
        **run_page(run, "", "Overview"),
        "look": look,
        "step": int(run.last("step") or 0),
        "alerts": alerts(run.metrics, prompts_per_step=wanted, unreadable=run.episodes.unreadable, cause=cause),
        "scores": last,
        "trade_off": trade_off(points),
        "tool_uses": uses,
        "has_tools": _has_tools(uses),
        "rollouts": _rollouts(queries.scores(con, "training")),
        "has_tool_choice": run.has_tool_choice,
        "presets": presets(with_tool_choice=run.has_tool_choice),
        "preset_counts": queries.counts(con, Filter(values={"set": "training"}))[1],
        "settings": settings_text(config) if isinstance(config, Config) else {},
        "settings_error": "" if isinstance(config, Config) else config,
    }


def _has_tools(uses: Sequence[ToolUse]) -> bool:
    """Whether there is more to say of tools than how many episodes asked for the full view."""
    return any(use.tool != RESIZE.name or use.num_calls > use.episodes.num_hits for use in uses)


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


def heldout(run: RunFolder, book: RunBook, first: str, second: str, kind: str) -> dict[str, Any]:
    """All evaluations, and two of them sample by sample. An evaluation is named RUN/FILE."""
    con = run.episodes.cursor()
    scores = queries.scores(con, "heldout")
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
        "has_tools": _has_tools(queries.tool_uses(con)),
        "has_tool_choice": run.has_tool_choice,
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
