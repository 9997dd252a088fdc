import gc

import numpy as np
import pytest

from actors.errors import CheckpointError
from learner.state.buffers import HostBuffers
from learner.state.snapshot import Counters, Piece, Share, fill_from_shares, plan_copies, rng_for

SHAPES = {"a": (2, 5), "b": (7,)}


def share(rank, ranges, *, step=3, shapes=SHAPES, padding=1):
    """A share with these (name, start, stop); element i of a parameter is 100 * row + i, of `b` negative."""
    pieces, columns, offset = [], [], 0
    for name, start, stop in ranges:
        pieces.append(Piece(name=name, start=start, stop=stop, offset=offset))
        values = np.arange(start, stop, dtype=np.float32)[None] + 100 * np.arange(3, dtype=np.float32)[:, None]
        columns += [values if name == "a" else -values, np.full((3, padding), np.nan, np.float32)]
        offset += stop - start + padding
    return Share(
        rank=rank,
        counters=Counters(optimizer_step=step, num_skipped=0, num_skipped_in_a_row=0),
        shapes=shapes,
        pieces=tuple(pieces),
        state_3N=np.concatenate(columns, axis=1),
        rng={"cpu": np.array([rank], np.uint8)},
    )


def filled(shares, ranges):
    """What a rank with these ranges reads from the shares."""
    expected = share(0, ranges, padding=0)
    target = np.zeros_like(expected.state_3N)
    headers = [share.header for share in shares]
    fill_from_shares(target, expected.pieces, headers, lambda index: shares[index].state_3N, SHAPES)
    return target, expected.state_3N


ONE = [[("a", 0, 10), ("b", 0, 7)]]
TWO = [[("a", 0, 8)], [("a", 8, 10), ("b", 0, 7)]]
THREE = [[("a", 0, 4), ("b", 0, 3)], [("a", 4, 8), ("b", 3, 6)], [("a", 8, 10), ("b", 6, 7)]]


@pytest.mark.parametrize("written", [ONE, TWO, THREE])
@pytest.mark.parametrize("read", [ONE, TWO, THREE])
def test_any_number_of_ranks_reads_what_any_other_wrote(written, read):
    shares = [share(rank, ranges) for rank, ranges in enumerate(written)]
    for ranges in read:
        found, expected = filled(shares[::-1], ranges)
        assert np.array_equal(found, expected)


def test_what_several_ranks_hold_is_read_once():
    found, expected = filled([share(0, ONE[0]), share(1, [("b", 2, 5)])], ONE[0])
    assert np.array_equal(found, expected)


def test_only_shares_that_are_needed_are_read():
    shares, read = [share(rank, ranges) for rank, ranges in enumerate(THREE)], []

    def rows(index):
        read.append(index)
        return shares[index].state_3N

    wanted = share(0, [("b", 1, 6)], padding=0)
    fill_from_shares(np.zeros_like(wanted.state_3N), wanted.pieces, shares, rows, SHAPES)
    assert read == [0, 1]


def test_a_share_that_is_not_needed_has_nothing_to_copy():
    sources = [share(rank, ranges).pieces for rank, ranges in enumerate(THREE)]
    assert [len(copies) for copies in plan_copies([Piece(name="a", start=5, stop=9, offset=0)], sources)] == [0, 1, 1]


@pytest.mark.parametrize(
    ("ranges", "gap"), [([("a", 0, 4), ("a", 5, 10)], "4 to 10 of a"), ([("a", 0, 9)], "9 to 10 of a")]
)
def test_a_gap_is_named(ranges, gap):
    with pytest.raises(CheckpointError, match=f"incomplete: elements {gap}"):
        filled([share(0, ranges), share(1, [("b", 0, 7)])], ONE[0])


def test_without_a_share_there_is_no_state():
    with pytest.raises(CheckpointError, match="no share"):
        filled([], ONE[0])


def test_shares_of_different_steps_are_refused():
    with pytest.raises(CheckpointError, match=r"different steps: rank 0 has .*optimizer_step=3.*optimizer_step=4"):
        filled([share(0, TWO[0]), share(1, TWO[1], step=4)], ONE[0])


def test_shares_of_another_model_are_refused_by_name_and_shape():
    with pytest.raises(CheckpointError, match=r"another model: b is \(8,\) there and \(7,\) here"):
        filled([share(0, ONE[0], shapes={**SHAPES, "b": (8,)})], ONE[0])


def test_a_rank_takes_its_own_generators_or_those_of_the_first():
    shares = [share(rank, ranges) for rank, ranges in enumerate(TWO)]
    assert [int(rng_for(rank, shares)["cpu"][0]) for rank in range(3)] == [0, 1, 0]


def test_memory_is_used_again_only_when_nobody_reads_it():
    buffers = HostBuffers(pinned=False)
    tensor, array = buffers.take(5)
    view, first = array[1, 2:], tensor.data_ptr()
    del array
    gc.collect()
    assert buffers.take(5)[0].data_ptr() != first, "a view reads it"
    del view
    gc.collect()
    pointers = [buffers.take(5)[0].data_ptr() for _ in range(2)]
    assert first in pointers


def test_memory_of_another_size_is_not_used_again():
    buffers = HostBuffers(pinned=False)
    buffers.take(5)
    gc.collect()
    tensor, array = buffers.take(6)
    assert tensor.shape == array.shape == (3, 6)
