"""Sizes that may change during a run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.ranges import Range, parse_range


@given(st.integers(1, 10**6), st.integers(0, 10**6))
def test_a_range_is_read_as_it_is_written(minimum: int, more: int) -> None:
    size = Range(minimum=minimum, maximum=minimum + more)
    assert parse_range("rollout.num_workers", str(size)) == size


@pytest.mark.parametrize(("value", "expected"), [(3, (3, 3)), ("3", (3, 3)), (" 2..6 ", (2, 6)), ("2 .. 6", (2, 6))])
def test_a_number_is_a_range_of_one_size(value: int | str, expected: tuple[int, int]) -> None:
    size = parse_range("rollout.num_workers", value)
    assert (size.minimum, size.maximum) == expected
    assert expected[0] in size
    assert expected[1] + 1 not in size


@pytest.mark.parametrize("value", ["", "x", "0", 0, -1, "6..2", "0..3", "1.5", "1...3", "2..", "..3", "2..3..4"])
def test_anything_else_is_refused_with_field_and_value(value: int | str) -> None:
    with pytest.raises(ValueError, match=r"rollout\.num_workers"):
        parse_range("rollout.num_workers", value)
