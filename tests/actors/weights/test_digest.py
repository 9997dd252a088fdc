"""Any fault on the way changes the digest of a bucket."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.weights import digest
from actors.weights.digest import ROW_BYTES, ROW_FACTOR, WORDS_PER_ROW, RunningDigest, bucket_digest
from actors.weights.layout import BUCKET_ALIGNMENT

ROWS = 5
"""An odd number, on purpose."""
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
    total = sum(
        word * (2 * (position // WORDS_PER_ROW) + 1) * ROW_FACTOR for position, word in enumerate(words.tolist())
    )
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
def test_two_words_that_change_places_show_unless_they_share_a_row(one, other):
    words = drawn()
    swapped = words.clone()
    swapped[[one, other]] = words[[other, one]]
    assert (digest_of(swapped) == digest_of(words)) == (one // WORDS_PER_ROW == other // WORDS_PER_ROW)


@given(st.permutations(range(ROWS)))
def test_rows_that_change_places_show(order):
    words = drawn()
    rows = words.view(ROWS, WORDS_PER_ROW)[list(order)]
    assert (digest_of(rows.flatten()) == digest_of(words)) == (list(order) == sorted(order))


@given(st.integers(0, WORDS - 1))
def test_bytes_that_arrive_shifted_show(shift):
    words = drawn()
    assert (digest_of(words.roll(shift)) == digest_of(words)) == (shift == 0)


def test_buckets_that_change_places_show():
    buckets = [drawn(seed=seed) for seed in range(20)]
    assert len({digest_of(bucket) for bucket in buckets}) == 20, "each is compared with its own digest"


@pytest.mark.parametrize("num_rows", [1, 2, 3, 5, 8, 1000])
def test_a_bucket_has_the_digest_of_the_definition(num_rows):
    words = drawn(num_rows)
    assert digest_of(words) == by_definition(words)


@pytest.mark.parametrize("num_bytes", [1, 7, 8, ROW_BYTES - 1, ROW_BYTES, ROW_BYTES + 1, 5 * ROW_BYTES - 1])
def test_a_bucket_of_any_size_counts_as_followed_by_zeros(num_bytes):
    content = drawn().view(torch.uint8)[:num_bytes]
    followed = torch.zeros(-(-num_bytes // ROW_BYTES) * ROW_BYTES, dtype=torch.uint8)
    followed[:num_bytes] = content
    assert int(bucket_digest(content)) == by_definition(followed.view(torch.int64))


@pytest.mark.parametrize("num_bytes", [5 * ROW_BYTES, 5 * ROW_BYTES - 3])
def test_the_pieces_in_which_a_bucket_is_read_do_not_matter(num_bytes, monkeypatch):
    content = drawn().view(torch.uint8)[:num_bytes]
    expected = int(bucket_digest(content))
    monkeypatch.setattr(digest, "PIECE_BYTES", 2 * ROW_BYTES)
    assert int(bucket_digest(content)) == expected


@given(st.lists(st.integers(0, 8 * ROW_BYTES), max_size=12), st.sampled_from([1, ROW_BYTES, 3 * ROW_BYTES]))
def test_a_bucket_that_fills_up_has_the_same_digest_and_is_not_read_ahead(ends, step):
    content = drawn(8).view(torch.uint8)[:-3]
    filling = torch.full_like(content, 255)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digest, "CACHED_BYTES", step)
        running = RunningDigest(filling)
        for end in sorted(ends):
            filling[:end] = content[:end]
            running.extend(min(end, len(content)))
        filling[:] = content
        assert int(running.finish()) == int(bucket_digest(content))


def test_a_bucket_is_a_whole_number_of_rows():
    assert BUCKET_ALIGNMENT % ROW_BYTES == 0


def test_a_lost_tail_shows():
    words = drawn()
    assert digest_of(words[:-WORDS_PER_ROW]) != digest_of(words)
