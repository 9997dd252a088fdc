"""The parts of the worker that need no engine. The whole is tested in tests/ray."""

import pytest

from actors.errors import RolloutError, SampleError
from actors.fleet.worker import most_severe

SAMPLE, WORKER, BUG = SampleError("placeholders differ"), RolloutError("engine died"), KeyError("bug")


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([SAMPLE], SAMPLE),
        ([SAMPLE, SampleError("later")], SAMPLE),
        ([SAMPLE, WORKER], WORKER),
        ([WORKER, SAMPLE], WORKER),
        ([SAMPLE, WORKER, BUG], BUG),
    ],
)
def test_a_group_fails_with_the_gravest_error_of_its_episodes(errors, expected):
    assert most_severe(ExceptionGroup("episodes", errors)) is expected
