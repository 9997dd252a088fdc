"""Families: episodes of one group whose common beginning is computed once. Pure, without tensors.

The episodes of a group begin with the same tokens and pictures: system text, question, first view, and whatever their
replies share. In a micro-batch a family is that beginning followed by the remainder of each episode; a remainder
attends to the beginning and to itself.

Legend: P shared tokens, R tokens of a remainder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actors.views import View
from learner.batches.batch import PlannedEpisode

ViewKey = tuple[int, View]
"""(index of an image in the plan, which of its views). `view_order` sorts them."""

ATTENTION_TOKENS = 20_000
"""Length of context at which attending to it costs a token as much as all else. Qwen2.5-VL 3B: 6.2 GFLOP in the layers,
and 4 * 36 layers * width 2,048 FLOP per token of context: 21,000; 7B: 38,000."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Family:
    """Made by `share`."""

    rows: tuple[PlannedEpisode, ...]
    num_shared: int
    """P: tokens with which every row begins. A family of one row shares all of it."""
    num_tokens: int
    """Tokens computed: the beginning once, and the remainders."""
    cost: float
    """Computed tokens, visual tokens and attention, in units of a token's cost in the language model."""

    @property
    def remainders(self) -> tuple[int, ...]:
        """R of each row; 0 for a row that is wholly shared."""
        return tuple(row.num_tokens - self.num_shared for row in self.rows)

    @property
    def visual_tokens(self) -> dict[ViewKey, int]:
        """The views that the rows show, with their visual tokens."""
        return _visual_tokens(self.rows)


def share(rows: Sequence[PlannedEpisode]) -> Family:
    """The family of rows of one image."""
    assert rows, "a family has a row"
    num_shared = shared_length(rows)
    remainders = [row.num_tokens - num_shared for row in rows]
    pairs = num_shared**2 / 2 + sum(length * (num_shared + length / 2) for length in remainders)
    num_tokens = num_shared + sum(remainders)
    visual = _visual_tokens(rows)
    return Family(
        rows=tuple(rows),
        num_shared=num_shared,
        num_tokens=num_tokens,
        cost=num_tokens + sum(visual.values()) + pairs / ATTENTION_TOKENS,
    )


def shown_views(row: PlannedEpisode) -> list[tuple[ViewKey, int]]:
    """The views that a row shows, one per picture, with their visual tokens."""
    return [((row.image, part.view), part.num_visual_tokens) for part in row.prompts if part.view is not None]


def view_order(key: ViewKey) -> tuple[int, str]:
    """Sorts views by image and text."""
    image, view = key
    return image, str(view)


def _visual_tokens(rows: Sequence[PlannedEpisode]) -> dict[ViewKey, int]:
    return {key: size for row in rows for key, size in shown_views(row)}


def shared_length(rows: Sequence[PlannedEpisode]) -> int:
    """Number of tokens with which all rows begin, cut so that no picture is split and all shared pictures are equal.

    A picture lies somewhere in what the prompt of its turn added, so a beginning contains such a part wholly or not.
    """
    first, *others = rows
    length = min([first.num_tokens, *(_common(first, other) for other in others)])
    shown: set[int] = {part.start for row in rows for part in row.prompts if part not in first.prompts}
    shown |= {part.start for part in first.prompts if any(part not in other.prompts for other in others)}
    length = min([length, *shown])
    inside = [part.start for row in rows for part in row.prompts if part.start < length < part.stop]
    return min([length, *inside])


def _common(first: PlannedEpisode, second: PlannedEpisode) -> int:
    length = min(first.num_tokens, second.num_tokens)
    differ = np.flatnonzero(first.token_ids[:length] != second.token_ids[:length])
    return int(differ[0]) if len(differ) else length
