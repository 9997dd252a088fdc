"""Any fault on the way changes the digest of a bucket."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.weights import digest
from actors.weights.digest import WORDS_PER_ROW, bucket_digest

ROWS = 5
"""An odd number, and with the two below no multiple of a piece."""
WORDS = ROWS * WORDS_PER_ROW
POSITIONS = st.integers(0, WORDS - 1)
ANY_WORD = st.integers(-(2**63), 2**63 - 1)


def drawn(num_rows=ROWS, seed=0):
    """A bucket of random words, int64 [num_rows * 512]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**63), 2**63 - 1, (num_rows * WORDS_PER_ROW,), generator=generator)


def digest_of(words):
    return int(bucket_digest(words.view(torch.uint8)))


def by_definition(words):
    """The docstring, word by word, in Python's own integers."""
    total = 0
    for position, word in enumerate(words.tolist()):
        row, column = divmod(position, WORDS_PER_ROW)
        total += word * ((2 * row + 1) * digest.ROW_FACTOR + 2 * (column + 1) * digest.COLUMN_FACTOR)
    return (total + 2**63) % 2**64 - 2**63


@given(POSITIONS, ANY_WORD)
def test_any_single_word_that_changes_shows(position, word):
    words = drawn()
    changed = words.clone()
    changed[position] = word
    assert (digest_of(changed) == digest_of(words)) == (word == words[position])


@given(POSITIONS, st.integers(0, 63))
def test_any_single_bit_that_flips_shows(position, bit):
    words = torch.zeros(WORDS, dtype=torch.int64)
    before = digest_of(words)
    words[position] = -(2**63) if bit == 63 else 2**bit
    assert digest_of(words) != before


@given(POSITIONS, POSITIONS)
def test_two_words_that_change_places_show(one, other):
    words = drawn()
    swapped = words.clone()
    swapped[[one, other]] = words[[other, one]]
    assert (digest_of(swapped) == digest_of(words)) == (one == other)


@given(st.permutations(range(ROWS)), st.integers(0, 20))
def test_rows_and_columns_that_change_places_show(order, shift):
    words = drawn()
    rows = words.view(ROWS, WORDS_PER_ROW)
    assert (digest_of(rows[list(order)].flatten()) == digest_of(words)) == (list(order) == sorted(order))
    assert (digest_of(rows.roll(shift, dims=1).flatten()) == digest_of(words)) == (shift == 0)


def test_buckets_that_change_places_show():
    buckets = [drawn(seed=seed) for seed in range(20)]
    assert len({digest_of(bucket) for bucket in buckets}) == 20, "each is compared with its own digest"


@pytest.mark.parametrize("num_rows", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("rows_at_a_time", [1, 2, 3, 8, 100])
def test_read_in_pieces_a_bucket_has_the_digest_of_the_definition(monkeypatch, num_rows, rows_at_a_time):
    monkeypatch.setattr(digest, "CPU_PIECE_BYTES", rows_at_a_time * digest.BUCKET_ALIGNMENT)
    words = drawn(num_rows)
    assert digest_of(words) == by_definition(words)


def test_a_lost_tail_shows():
    words = drawn()
    assert digest_of(words[:-WORDS_PER_ROW]) != digest_of(words)
