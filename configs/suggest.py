"""What a mistyped setting or config may have meant. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

MAX_SUGGESTIONS = 3


def suggest(key: str, known: Collection[str]) -> list[str]:
    """Known keys that this one may have meant, the likeliest first.

    The same last part elsewhere (`num_steps`, `judge.model`), its initials (`learner.lr`), or another spelling.
    """
    section, _, name = key.rpartition(".")
    by_name = [each for each in known if _last(each) == name]
    initials = [each for each in known if "_" in _last(each) and _initials(each) == name]
    near = [each for each in initials if each.startswith(f"{section}.")]
    close = difflib.get_close_matches(key, known, n=MAX_SUGGESTIONS, cutoff=0.75)
    names = difflib.get_close_matches(name, {_last(each) for each in known}, cutoff=0.8)
    spelled = [each for each in known if _last(each) in names]
    found = next(filter(None, (by_name, near, close, spelled, initials)), [])
    return found[:MAX_SUGGESTIONS]


def did_you_mean(key: str, known: Collection[str]) -> str:
    """The suggestions as part of a sentence; empty without any."""
    found = suggest(key, known)
    return f"; did you mean {_listed(found)}?" if found else ""


def _listed(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _initials(key: str) -> str:
    return "".join(word[:1] for word in _last(key).split("_"))
