"""Keeps a display readable: a line that repeats within a step is shown once, then counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable


class Repeats:
    """Between a log and a display. `flush` ends a step."""

    def __init__(self, *, say: Callable[[str], None], warn: Callable[[str], None]) -> None:
        self._show = {"say": say, "warn": warn}
        self._counts: Counter[tuple[str, str]] = Counter()

    def say(self, text: str) -> None:
        self._add("say", text)

    def warn(self, text: str) -> None:
        self._add("warn", text)

    def flush(self) -> None:
        """Tell how often lines were repeated, and begin anew."""
        for (how, text), num in self._counts.items():
            if num > 1:
                self._show[how](f"{text} ({num} times)")
        self._counts.clear()

    def _add(self, how: str, text: str) -> None:
        self._counts[how, text] += 1
        if self._counts[how, text] == 1:
            self._show[how](text)
