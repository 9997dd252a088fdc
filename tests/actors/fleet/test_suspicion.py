"""When failed samples tell against a worker."""

import pytest

from actors.fleet.suspicion import FailureHistory, is_faulty

CLEAN = FailureHistory()
FAILED = FailureHistory(failed_samples=("x",))


def after(events: str) -> FailureHistory:
    """`.` is a group that was played, any letter the sample of that name that failed."""
    standing = CLEAN
    for event in events:
        standing = standing.after_success() if event == "." else standing.after_failure(event)
    return standing


@pytest.mark.parametrize(
    ("events", "others", "expected"),
    [
        ("", [CLEAN], False),
        ("a", [CLEAN], False),
        ("ab", [CLEAN], False),
        ("abc", [CLEAN], True),
        ("abcd", [CLEAN], True),
        ("....abc", [CLEAN, FAILED], True),
        # The same sample, or failures with a success between them, prove nothing.
        ("aaaaaa", [CLEAN], False),
        ("aabab", [CLEAN], False),
        ("ab.cd.ef", [CLEAN], False),
        ("abc.", [CLEAN], False),
        # Where samples fail on every worker, the worker is not what they have in common.
        ("abcdef", [FAILED], False),
        ("abcdef", [FAILED, after("abc")], False),
        ("abc", [FAILED, CLEAN], True),
        # The last worker has none to be compared with.
        ("abcdef", [], False),
    ],
)
def test_a_worker_is_unfit_once_different_samples_in_a_row_fail_on_it_and_not_elsewhere(events, others, expected):
    assert is_faulty(after(events), others) is expected
