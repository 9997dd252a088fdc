"""From values to HTML: the templates, in which all text is escaped, their filters, and the addresses of pages."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import jinja2
from markupsafe import Markup

from actors.needs import NEED_NAMES
from cluster.status.table import short_time
from cluster.viewer import queries
from cluster.viewer.filters import Filter
from cluster.viewer.runs import RunFolder
from cluster.visible import visible

HERE = Path(__file__).parent
STATIC = HERE / "static"
KIND_NAMES = {"policy": "policy", "always_quarter": "always quarter", "always_full": "always full"}
PAGES = (
    ("", "Overview"), ("curves", "Curves"), ("episodes", "Episodes"), ("heldout", "Held-out"), ("judge", "Judge"),
    ("system", "System"), ("events", "Events"),
)  # fmt: skip


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


@lru_cache(maxsize=1)
def make_templates() -> jinja2.Environment:
    """Compiled once. Everything that is put into a page is escaped, and characters that act unseen are shown."""
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
    templates.globals |= {
        "KIND_NAMES": KIND_NAMES, "NEED_NAMES": NEED_NAMES, "episode_url": episode_url, "verdict_of": verdict_of,
    }  # fmt: skip
    return templates


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
