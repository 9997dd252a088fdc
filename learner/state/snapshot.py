"""One rank's part of the learner's state in host memory, independent of the number of ranks and of the ZeRO stage.

The state of a learner is, for each trained parameter, its float32 weight and the two Adam moments. A rank holds some
ranges of the flattened parameters. Whoever wrote them, any other number of ranks can take them over: each finds the
ranges that it needs by parameter name and element.

Legend: N elements of a rank's part, in whatever order; the three rows are those of `ROWS`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from actors.errors import CheckpointError

ROWS = ("weight", "exp_avg", "exp_avg_sq")
Shapes = Mapping[str, tuple[int, ...]]
RngStates = Mapping[str, NDArray[np.uint8]]
"""States of random generators by device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Counters of the learner, equal on all ranks."""

    optimizer_step: int
    """Steps applied: the version of the weights."""
    num_skipped: int
    """Steps skipped because of a non-finite loss or gradient."""
    num_skipped_in_a_row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Elements `start` to `stop` (exclusive) of a flattened parameter."""

    name: str
    start: int
    stop: int
    offset: int
    """Of the first one in the rows that hold it."""

    @property
    def num_elements(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareHeader:
    """All of a share but the elements: small enough for every rank to read that of every share."""

    rank: int
    """That held it."""
    counters: Counters
    shapes: Shapes
    """Of all trained parameters, whole."""
    pieces: tuple[Piece, ...]
    rng: RngStates


@dataclass(frozen=True, slots=True, kw_only=True)
class Share(ShareHeader):
    """One rank's part of the learner's state. It is immutable, and its memory is used again once it is dropped."""

    state_3N: NDArray[np.float32]
    """Weights and moments [3, N]; elements outside of all pieces are padding."""

    @property
    def header(self) -> ShareHeader:
        return ShareHeader(**{field.name: getattr(self, field.name) for field in fields(ShareHeader)})


ReadRows = Callable[[int], NDArray[np.float32]]
"""Reads the rows [3, N] of the share with this index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A range to copy from one set of rows to another."""

    source: int
    target: int
    num_elements: int


def plan_copies(wanted: Sequence[Piece], sources: Sequence[Sequence[Piece]]) -> list[list[Copy]]:
    """What to copy from each source so that all wanted pieces are filled; a source without copies is not needed.

    Raises:
        CheckpointError: elements are in no source.
    """
    by_name: dict[str, list[tuple[int, Piece]]] = defaultdict(list)
    for index, pieces in enumerate(sources):
        for piece in pieces:
            by_name[piece.name].append((index, piece))
    for found in by_name.values():
        found.sort(key=lambda entry: entry[1].start)
    copies: list[list[Copy]] = [[] for _ in sources]
    for piece in wanted:
        position = piece.start
        for index, found_piece in by_name[piece.name]:
            stop = min(found_piece.stop, piece.stop)
            if found_piece.start > position or stop <= position:
                continue
            copies[index].append(
                Copy(
                    source=found_piece.offset + position - found_piece.start,
                    target=piece.offset + position - piece.start,
                    num_elements=stop - position,
                )
            )
            position = stop
        if position < piece.stop:
            raise CheckpointError(
                f"the learner's state is incomplete: elements {position} to {piece.stop} of {piece.name} are missing"
            )
    return copies


def copy_rows(copies: Iterable[Copy], source_3N: NDArray[np.float32], target_3N: NDArray[np.float32]) -> None:
    """Carry out the copies, in all rows."""
    for copy in copies:
        target_3N[:, copy.target : copy.target + copy.num_elements] = source_3N[
            :, copy.source : copy.source + copy.num_elements
        ]


def fill_from_shares(
    target_3N: NDArray[np.float32],
    wanted: Sequence[Piece],
    headers: Sequence[ShareHeader],
    read_rows: ReadRows,
    shapes: Shapes,
) -> Counters:
    """Fill the wanted pieces from shares written by any number of ranks; returns their counters.

    Args:
        read_rows: called only for shares that hold wanted elements, one after another.
        shapes: of the trained parameters of this model.

    Raises:
        CheckpointError: elements are missing, the shares are of different steps, or of another model.
    """
    if not headers:
        raise CheckpointError("the learner's state is incomplete: there is no share of it")
    first = min(headers, key=lambda header: header.rank)
    for header in headers:
        if header.counters != first.counters:
            raise CheckpointError(
                f"the shares are of different steps: rank {first.rank} has {first.counters}, "
                f"rank {header.rank} has {header.counters}"
            )
    check_shapes(first.shapes, shapes)
    for index, copies in enumerate(plan_copies(wanted, [header.pieces for header in headers])):
        if copies:
            copy_rows(copies, read_rows(index), target_3N)
    return first.counters


def rng_for(rank: int, headers: Sequence[ShareHeader]) -> RngStates:
    """The generators of this rank, or of the lowest one where more ranks read than wrote."""
    return next((header for header in headers if header.rank == rank), min(headers, key=lambda header: header.rank)).rng


def check_shapes(found: Shapes, expected: Shapes) -> None:
    """Reject the state of another model, naming the first parameter that differs.

    Raises:
        CheckpointError: they differ.
    """
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise CheckpointError(
                f"the checkpoint is of another model: {name} is {found.get(name)} there and {expected.get(name)} here"
            )
