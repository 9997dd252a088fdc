"""Sizes that may change during a run: `4`, or `2..6`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from configs.require import require


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """From `minimum` to `maximum` members, both included."""

    minimum: int
    maximum: int

    def __str__(self) -> str:
        return str(self.minimum) if self.minimum == self.maximum else f"{self.minimum}..{self.maximum}"

    def __contains__(self, size: int) -> bool:
        return self.minimum <= size <= self.maximum


def parse_range(name: str, value: int | str) -> Range:
    """The value of a setting `name`: a number, or MIN..MAX as text.

    Raises:
        ValueError: it is neither, below 1, or MIN is above MAX.
    """
    match = re.fullmatch(r"\s*(\d+)\s*(?:\.\.\s*(\d+)\s*)?", str(value))
    require(match is not None, name, value, "must be a number, or MIN..MAX, as in 2..6")
    assert match is not None
    minimum = int(match[1])
    maximum = int(match[2]) if match[2] else minimum
    require(minimum >= 1, name, value, "must be at least 1")
    require(minimum <= maximum, name, value, "must have the smaller number first")
    return Range(minimum=minimum, maximum=maximum)
