"""Histograms as lines of text."""

from __future__ import annotations

from collections.abc import Mapping

WIDTH = 40


def bars(counts: Mapping[str, int], title: str) -> list[str]:
    """A line per class: its name, a bar in proportion to the largest, its count."""
    most = max(counts.values(), default=0)
    label = max(map(len, counts), default=0)
    return [
        title,
        *(
            f"{name:>{label}} {'█' * round(WIDTH * count / most) if most else '':{WIDTH}} {count}"
            for name, count in counts.items()
        ),
    ]
