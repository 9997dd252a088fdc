"""The order of the rows under any seed."""

import numpy as np
import pytest

from actors.data.dataset import PromptCursor


def drawn(seed: int) -> list[int]:
    return [ref.row for ref in PromptCursor(dataset="d", num_rows=50, seed=seed).take(100)]


@pytest.mark.parametrize("seed", [0, 7, 20261129, 2**32, 10**40, -1, -20261129, -(10**40)])
def test_any_integer_seeds_the_order_of_the_rows(seed):
    rows = drawn(seed)
    assert sorted(rows[:50]) == sorted(rows[50:]) == list(range(50))
    assert (rows == drawn(-seed)) == (seed == 0)
    assert rows != drawn(seed + 1)


@pytest.mark.parametrize("seed", [0, 7, 20261129])
def test_the_order_of_earlier_releases_stands(seed):
    """A run that goes on from a checkpoint has to meet the rows that it has not seen."""
    expected = [row for epoch in (0, 1) for row in np.random.default_rng([seed, epoch]).permutation(50)]
    assert drawn(seed) == expected
