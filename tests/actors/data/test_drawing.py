"""The order in which rows are drawn, and the account of those that could not be used."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.data.dataset import MIN_SKIPPED, CursorState, PromptCursor, SkipLedger
from actors.episode import SampleRef
from actors.errors import DataError


def ref(row: int) -> SampleRef:
    return SampleRef(dataset="d", row=row, uid=f"0-{row}")


@given(num_rows=st.integers(1, 40), seed=st.integers(0, 2**31), num_epochs=st.integers(1, 3))
def test_every_epoch_visits_each_row_once(num_rows, seed, num_epochs):
    cursor = PromptCursor(dataset="d", num_rows=num_rows, seed=seed)
    for epoch in range(num_epochs):
        refs = cursor.take(num_rows)
        assert sorted(ref.row for ref in refs) == list(range(num_rows))
        assert {ref.uid for ref in refs} == {f"{epoch}-{row}" for row in range(num_rows)}
    assert cursor.num_taken == num_epochs * num_rows


@given(num_rows=st.integers(1, 30), taken=st.integers(0, 100), seed=st.integers(0, 1000))
def test_a_restored_cursor_goes_on_identically(num_rows, taken, seed):
    cursor = PromptCursor(dataset="d", num_rows=num_rows, seed=seed)
    cursor.take(taken)
    resumed = PromptCursor(dataset="d", num_rows=num_rows, seed=seed)
    resumed.restore(cursor.state())
    assert resumed.take(2 * num_rows + 3) == cursor.take(2 * num_rows + 3)
    assert resumed.state() == cursor.state()


def test_seeds_and_epochs_draw_in_different_orders():
    cursor = PromptCursor(dataset="d", num_rows=100, seed=0)
    first, second = ([ref.row for ref in cursor.take(100)] for _ in range(2))
    other = [ref.row for ref in PromptCursor(dataset="d", num_rows=100, seed=1).take(100)]
    assert first != second
    assert first != other


@pytest.mark.parametrize("state", [{"epoch": -1, "position": 0}, {"epoch": 0, "position": 6}])
def test_a_state_of_another_data_set_is_refused(state):
    with pytest.raises(ValueError, match="cannot be restored over 5 rows"):
        PromptCursor(dataset="d", num_rows=5, seed=0).restore(CursorState(seed=0, **state))


def test_a_state_of_another_seed_is_refused_and_changes_nothing():
    cursor = PromptCursor(dataset="d", num_rows=5, seed=0)
    cursor.take(2)
    with pytest.raises(ValueError, match=r"cannot be restored under run\.seed=0: resume with the original seed"):
        cursor.restore(CursorState(seed=1, epoch=0, position=0))
    assert cursor.take(3) == PromptCursor(dataset="d", num_rows=5, seed=0).take(5)[2:]


def test_an_epoch_is_shuffled_once_however_often_rows_are_taken(monkeypatch):
    epochs = []
    default_rng = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: epochs.append(seed[1]) or default_rng(seed))
    cursor = PromptCursor(dataset="d", num_rows=10, seed=0)
    for _ in range(25):
        cursor.take(1)
    assert epochs == [0, 1, 2]


def test_a_cursor_needs_rows():
    with pytest.raises(ValueError, match="num_rows=0"):
        PromptCursor(dataset="d", num_rows=0, seed=0)


def ledger_after(*, num_usable, max_skipped_fraction):
    ledger = SkipLedger(max_skipped_fraction=max_skipped_fraction)
    for _ in range(num_usable):
        ledger.count_read()
    return ledger


def test_a_few_unusable_rows_are_named_and_too_many_stop_the_run():
    ledger = ledger_after(num_usable=989, max_skipped_fraction=0.01)
    for row in range(MIN_SKIPPED - 1):
        ledger.add(ref(row), "broken")
    assert ledger.skipped[3] == (ref(3), "broken")
    with pytest.raises(DataError, match=r"10 of the 999 rows of d .*max_skipped_fraction=0\.01") as caught:
        ledger.add(ref(9), "row 9 of d: worse")
    assert str(caught.value).endswith("the last ones: row 7: broken; row 8: broken; row 9 of d: worse")


def test_skipped_rows_within_the_share_are_borne():
    ledger = ledger_after(num_usable=2970, max_skipped_fraction=0.01)
    for row in range(30):
        ledger.add(ref(row), "broken")
    assert (len(ledger.skipped), ledger.num_read) == (30, 3000)
    with pytest.raises(DataError, match="31 of the 3001 rows"):
        ledger.add(ref(30), "broken")
