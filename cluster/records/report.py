"""The report of a run: one self-contained HTML file with curves, settings and episodes with their images.

All text is escaped: what a policy writes must not become markup.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from actors.data.dataset import Dataset
from actors.episode import SampleRef
from actors.errors import DataError
from actors.images import View_HW3, ViewSpec, can_quarter, check_and_decode, full_view, quarter_view
from cluster.records.events import LoggedEvent, read_log
from cluster.records.files import write_atomically
from cluster.records.plots import CHARTS, chart_svg
from cluster.records.reading import Row, choose_episodes, read_episodes, read_metrics
from configs.load import load_saved
from configs.paths import resolve_paths
from configs.schema import Config

EPISODES_PER_STEP = 8
MAX_EVENTS = 200
MAX_SHOWN_SIDE = 640
"""Pixels of the longer side of an image in the report; larger views are downscaled, both by the same factor."""
HELDOUT_ROWS = (
    ("heldout/accuracy", "accuracy, policy"),
    ("heldout/accuracy_quarter", "accuracy, always quarter"),
    ("heldout/accuracy_full", "accuracy, always full"),
    ("heldout/ask_share", "tool-call rate"),
    ("heldout/ask_share_needed", "tool-call rate, full view needed"),
    ("heldout/ask_share_unneeded", "tool-call rate, full view not needed"),
    ("heldout/visual_token_share", "visual-token ratio"),
)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; background: #fff; max-width: 1150px; margin: 2rem auto;
  padding: 0 1rem }
h2 { margin-top: 2.2rem }
table { border-collapse: collapse; margin: .5rem 0 }
td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #e3e7ec }
th { font-weight: 500; color: #5b6672 }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(480px, 1fr)); gap: .6rem }
.charts img { width: 100% }
.episode { border: 1px solid #d5dbe2; border-radius: 8px; padding: .8rem 1rem; margin: 1rem 0 }
.views { display: flex; gap: 1rem; margin: .5rem 0 }
figure { margin: 0 }
figure img { width: 240px; image-rendering: pixelated; border: 1px solid #d5dbe2 }
figcaption, .small { color: #5b6672; font-size: 13px }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f4f6f8; padding: .5rem .7rem; border-radius: 6px;
  margin: .2rem 0 .6rem }
summary { cursor: pointer }
"""

Views = tuple[View_HW3 | None, View_HW3]
"""Quarter view (None where the picture is too small to quarter) and full view."""


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run's folder and return its path; an older one is replaced atomically.

    Raises:
        ValueError: not a run folder.
    """
    run_dir = Path(run_dir)
    saved = run_dir / "config.yaml"
    if not saved.is_file():
        raise ValueError(f"{run_dir} has no config.yaml: give a run folder")
    config = resolve_paths(load_saved(saved)[0])
    metrics = read_metrics(run_dir)
    episodes = choose_episodes(read_episodes(run_dir), EPISODES_PER_STEP)
    page = render_page(config, metrics, episodes, partial(load_views, config, {}), read_log(run_dir))
    report = run_dir / "report.html"
    write_atomically(report, page)
    return report


def render_page(
    config: Config,
    metrics: Sequence[dict[str, float]],
    episodes: Sequence[Row],
    views_of: Callable[[Row], Views | str],
    log: Sequence[LoggedEvent] = (),
) -> str:
    """The whole page. `views_of` gives an episode's two views, or the reason why there are none."""
    title = escape(f"VisionThink: {config.run.name}")
    events = [logged.event for logged in log]
    charts = [(chart.title, picture) for chart in CHARTS if (picture := chart_svg(chart, metrics, events))]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            f"<title>{title}</title><style>{STYLE}</style></head><body>",
            f"<h1>{title}</h1>",
            f"<p>{len(metrics)} steps recorded; penalty {escape(config.reward.penalty)}, "
            f"G = {config.rollout.group_size}, {config.train.prompts_per_step} prompts per step.</p>",
            *_heldout(metrics),
            "<h2>Curves</h2>" if charts else "<p>No step has finished yet.</p>",
            '<div class="charts">',
            *(f'<img alt="{escape(name)} over steps" src="{picture}">' for name, picture in charts),
            "</div>",
            *_events(log),
            "<h2>Episodes</h2>" if episodes else "",
            *(render_episode(row, views_of(row)) for row in episodes),
            "<h2>Settings</h2>",
            "<details><summary>All settings of the run</summary>",
            _table(
                (f"{section}.{name}", value) for section, rest in asdict(config).items() for name, value in rest.items()
            ),
            "</details></body></html>",
        ]
    )


def render_episode(row: Row, views: Views | str) -> str:
    """One episode: question, images, turns, verdict, reward, advantage, policy versions."""
    is_correct = row.get("is_correct")
    verdict = "no verdict" if is_correct is None else "right" if is_correct else "wrong"
    need = {None: "need not recorded", True: "full view needed", False: "full view not needed"}
    versions = {span["version"] for turn in row.get("turns") or () for span in turn.get("version_spans") or ()}
    facts = (
        ("reference", row.get("reference")),
        ("answer", row.get("answer")),
        ("verdict", f"{verdict} ({row.get('judge') or '-'}: {row.get('reason') or '-'})"),
        ("status", f"{row.get('status')}, {'well formed' if row.get('is_well_formed') else 'malformed'}"),
        ("reward", _number(row.get("reward"))),
        ("advantage", _number(row.get("advantage"))),
        ("policy versions", ", ".join(str(version) for version in sorted(versions))),
    )
    asked = "tool call" if row.get("asked") else "direct answer"
    return "\n".join(
        [
            '<div class="episode">',
            f"<strong>{escape(str(row.get('question')))}</strong>",
            f'<div class="small">step {row.get("step")}, sample {escape(str(row.get("sample")))}, '
            f"episode {row.get('index')}: {asked}; {need[row.get('needs_full')]}</div>",
            _pictures(views),
            *(_turn(number, turn) for number, turn in enumerate(row.get("turns") or (), start=1)),
            _table(facts),
            "</div>",
        ]
    )


def load_views(config: Config, opened: dict[str, Dataset], row: Row) -> Views | str:
    """The two views of an episode's picture, cut as the engine cut them; a reason where the data set has moved.

    Args:
        config: of the run: its pixel budget, its model's patches, its limits on pictures.
        opened: data sets already open, by path.
        row: an episode.
    """
    path = row["dataset"]
    try:
        if path not in opened:
            opened[path] = Dataset.open(path, config.data.columns_of(path))
        sample = opened[path].read(SampleRef(dataset=path, row=row["row"], uid=row["sample"]))
        spec = ViewSpec.from_model(
            config.model.path, min_pixels=config.model.min_pixels, max_pixels=config.model.max_pixels
        )
        limits = config.data
        full = full_view(
            check_and_decode(sample.image, max_pixels=limits.max_source_pixels, max_side_ratio=limits.max_side_ratio),
            spec,
        )
    except (DataError, OSError, ValueError) as error:
        return f"image not available: {error}"
    return (quarter_view(full) if can_quarter(full.shape[0], full.shape[1], spec) else None), full


def picture_uri(view: View_HW3, max_side: int) -> str:
    """A view as a data URI, reduced until no side is longer than `max_side` pixels; lossless while it is small."""
    image = Image.fromarray(view)
    is_reduced = max(image.size) > max_side
    image.thumbnail((max_side, max_side))
    encoded = io.BytesIO()
    if is_reduced:
        image.save(encoded, format="JPEG", quality=85)
    else:
        image.save(encoded, format="PNG")
    kind = "jpeg" if is_reduced else "png"
    return f"data:image/{kind};base64," + base64.b64encode(encoded.getvalue()).decode("ascii")


def _pictures(views: Views | str) -> str:
    if isinstance(views, str):
        return f'<p class="small">{escape(views)}</p>'
    quarter, full = views
    shown = [("full", full, MAX_SHOWN_SIDE)]
    if quarter is not None:
        # Both reduced by the same factor, else a large full view would look no finer than its quarter.
        shown.insert(0, ("quarter", quarter, MAX_SHOWN_SIDE // 2))
    figures = (
        f'<figure><img alt="{name} view" src="{picture_uri(view, max_side)}">'
        f"<figcaption>{name}: {view.shape[1]} x {view.shape[0]} pixels</figcaption></figure>"
        for name, view, max_side in shown
    )
    return f'<div class="views">{"".join(figures)}</div>'


def _turn(number: int, turn: dict[str, Any]) -> str:
    spans = ", ".join(f"{s['num_tokens']} under version {s['version']}" for s in turn.get("version_spans") or ())
    caption = (
        f"turn {number}: {turn.get('view')} view, {turn.get('num_visual_tokens')} visual tokens, "
        f"{len(turn.get('completion_ids') or ())} tokens sampled ({spans or '-'}), "
        f"finish reason {turn.get('finish_reason')}"
    )
    return f'<div class="small">{escape(caption)}</div><pre>{escape(str(turn.get("text")))}</pre>'


def _heldout(metrics: Sequence[dict[str, float]]) -> list[str]:
    """The last evaluation, where there was one."""
    evaluated = [figures for figures in metrics if any(key in figures for key, _ in HELDOUT_ROWS)]
    if not evaluated:
        return []
    last = evaluated[-1]
    rows = ((name, _number(last[key])) for key, name in HELDOUT_ROWS if key in last)
    return [f"<h2>Held-out split, greedy, after step {last['step']:g}</h2>", _table(rows)]


def _events(log: Sequence[LoggedEvent]) -> list[str]:
    """How many events of each kind there were, and the last ones."""
    if not log:
        return []
    counts = Counter(logged.event.kind for logged in log)
    shown = (
        (
            f"{datetime.fromtimestamp(logged.time):%Y-%m-%d %H:%M:%S}",
            f"step {'-' if logged.event.step is None else logged.event.step}: {logged.event.line()}",
        )
        for logged in log[-MAX_EVENTS:]
    )
    listed = ", ".join(f"{num} {kind}" for kind, num in counts.most_common())
    caption = f"All {len(log)} events" if len(log) <= MAX_EVENTS else f"The last {MAX_EVENTS} of {len(log)} events"
    return [
        "<h2>Events</h2>",
        f"<p>{escape(listed)}</p>",
        f"<details><summary>{caption}</summary>",
        _table(shown),
        "</details>",
    ]


def _table(rows: Iterable[tuple[str, object]]) -> str:
    cells = (f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in rows)
    return f"<table>{''.join(cells)}</table>"


def _number(figure: float | None) -> str:
    return "none" if figure is None else f"{figure:.3f}"
