"""The report of a run: the viewer's pages as one HTML file without scripts, that needs neither server nor run."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from actors.views import Size, parse_view
from cluster.folders import CONFIG
from cluster.records.files import write_atomically
from cluster.records.reading import Row
from cluster.viewer import pages, queries, rendering
from cluster.viewer.episode_pages import episode_view
from cluster.viewer.filters import PRESETS, Filter, Preset, presets
from cluster.viewer.pictures import encode, picture_of
from cluster.viewer.runs import RunFolder
from configs.paths import maybe_meant

NUM_PER_KIND = 3
"""Episodes of each kind, of different samples."""
NUM_LOOKED_AT = 200
MAX_BYTES = 1 << 28
"""Of the files that are read: the driver writes the report at the end of a run, which may have millions of episodes."""
MAX_SHOWN_SIDE = 640
"""Pixels of the longer side of a full view; other views are reduced by the same factor, else they would look finer."""


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run's folder and return its path; an older one is replaced atomically.

    Raises:
        ValueError: not a run folder.
    """
    if not (run_dir / CONFIG).is_file():
        raise ValueError(f"{run_dir} has no {CONFIG}: give a run folder{maybe_meant(run_dir)}")
    run = RunFolder(run_dir.absolute().name, run_dir.absolute(), max_bytes=MAX_BYTES)
    offered = presets(with_tool_choice=run.has_tool_choice)
    chosen = [(title, _episode(run, row)) for title, row in choose_episodes(run.episodes.cursor(), offered)]
    values = {
        **pages.overview(run),
        "run_url": "",  # no links
        "charts": [chart for charts in (pages.curves(run), pages.system(run)) for chart in charts["charts"]],
        "evaluations": queries.scores(run.episodes.cursor(), "heldout"),
        "chosen": chosen,
        **{name: value for name, value in pages.events(run, "").items() if name in pages.EVENT_FIELDS},
        "style": Markup(
            (rendering.STATIC / "viewer.css").read_text(encoding="utf-8")
        ),  # our own file: no text of others
    }
    if run.episodes.num_left_out:
        part = f"made from the newest episodes and the oldest: {run.episodes.num_left_out} files between were not read"
        values["alerts"] = [*values["alerts"], part]
    report = run_dir / "report.html"
    write_atomically(report, rendering.make_templates().get_template("report.html").render(**values))
    return report


def choose_episodes(con: queries.Connection, offered: Mapping[str, Preset] = PRESETS) -> Iterator[tuple[str, Row]]:
    """The newest episodes, the oldest, held-out ones, and those of each preset: a few of each, of different samples."""
    first = {
        "newest": {"set": "training"},
        "oldest": {"set": "training", "sort": "step"},
        "held-out": {"set": "heldout"},
    }
    kinds = [(title, Filter(values=values)) for title, values in first.items()]
    kinds += [(preset.title, Filter(values={"preset": name})) for name, preset in offered.items()]
    seen = set[tuple[str, str]]()
    for title, chosen in kinds:
        num = 0
        for row in queries.page(con, chosen, offset=0, limit=NUM_LOOKED_AT):
            sample = (row["file"], row["sample"])
            if num < NUM_PER_KIND and sample not in seen:
                seen.add(sample)
                num += 1
                found = queries.episode(con, {name: str(row[name]) for name in queries.KEY})
                if found is not None:
                    yield title, found


def _episode(run: RunFolder, row: Row) -> dict[str, Any]:
    """As on its page, with its pictures inside."""
    view = episode_view(run, row)
    views = view["no_picture"] or run.pictures.views(view["row"])
    sources = {}
    if not isinstance(views, str):
        full_size: Size = views[1].shape[:2]
        scale = min(1.0, MAX_SHOWN_SIDE / max(full_size))
        for shown in (*view["views"], *view["crops"].values()):
            picture = picture_of(views, parse_view(shown.name))
            assert picture is not None, shown
            media_type, content = encode(picture, max(1, round(scale * max(picture.shape[:2]))))
            sources[shown.name] = f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
    return {**view, "sources": sources}
