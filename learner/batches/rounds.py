"""Rounds of a mini-batch: the views of each are encoded in one pass, and learned from while its activations stay. Pure.

A picture's families stay together, as they show the same views.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Sequence

from learner.batches.family import Family

LEAST_FILLED = 1 / 8
"""Tokens of a round, as a share of the largest micro-batch, below which no rounds are made."""


def split_rounds(
    shares: Sequence[Sequence[Family]], max_tokens: int, max_visual_tokens: int
) -> list[list[list[Family]]]:
    """The shares of the ranks in rounds whose views fit one vision pass: its activations can stay until the
    micro-batches that show the views have given their gradient, so that the tower runs once. Pictures that exceed a
    pass alone are in the last round together.

    One round if one pass is enough for all, or where rounds would leave micro-batches too small for a GPU.
    """
    by_image = [_by_image(families) for families in shares]
    if max(sum(map(num_visual_tokens, images)) for images in by_image) <= max_visual_tokens:
        return [[list(families) for families in shares]]
    small = [[each for each in images if num_visual_tokens(each) <= max_visual_tokens] for images in by_image]
    large = [[each for each in images if num_visual_tokens(each) > max_visual_tokens] for images in by_image]
    tokens = max(sum(family.num_tokens for image in images for family in image) for images in small)
    most = min(max(map(len, small)), int(tokens / (max_tokens * LEAST_FILLED)))
    least = max(1, -(-max(sum(map(num_visual_tokens, images)) for images in small) // max_visual_tokens))
    for count in range(least, most + 1):
        rounds = [_into_rounds(images, count) for images in small]
        if all(sum(map(num_visual_tokens, images)) <= max_visual_tokens for of in rounds for images in of):
            whole = [[*of, *([rest] if any(large) else [])] for of, rest in zip(rounds, large, strict=True)]
            return [[list(itertools.chain(*images)) for images in same] for same in zip(*whole, strict=True)]
    return [[list(families) for families in shares]]


def _by_image(families: Iterable[Family]) -> list[list[Family]]:
    """Families that show the same views together."""
    found: dict[int, list[Family]] = {}
    for family in families:
        found.setdefault(family.rows[0].image, []).append(family)
    return list(found.values())


def num_visual_tokens(families: Iterable[Family]) -> int:
    """Of the distinct views."""
    return sum({key: size for family in families for key, size in family.visual_tokens.items()}.values())


def _into_rounds(images: Iterable[list[Family]], count: int) -> list[list[list[Family]]]:
    """Most visual tokens first, each to the round with the fewest; the costly rounds first."""
    rounds: list[list[list[Family]]] = [[] for _ in range(count)]
    loads = [(0, index) for index in range(count)]
    for image in sorted(images, key=lambda image: -num_visual_tokens(image)):
        load, index = loads[0]
        rounds[index].append(image)
        heapq.heapreplace(loads, (load + num_visual_tokens(image), index))
    return sorted(rounds, key=lambda images: -sum(family.cost for image in images for family in image))
