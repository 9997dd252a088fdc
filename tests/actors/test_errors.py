"""The errors of a run."""

import pytest
from ray.exceptions import RayTaskError

from actors.errors import MAX_GIST_CHARS, JudgeError, gist

REMOTE = "ray::ServeReplica()\n  File x\n\nValueError: no such model\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (JudgeError("the endpoint is down\nmore of it"), "the endpoint is down"),
        ("The actor died unexpectedly.\n\tclass_name: X", "The actor died unexpectedly."),
        ("The actor died because of an error raised in its creation task\n  x\nKeyError: 1", "KeyError: 1"),
        (REMOTE, "ValueError: no such model"),
        (f"The deployment failed. Error:\n\x1b[36mray::{REMOTE.removeprefix('ray::')}", "ValueError: no such model"),
        (f"The deployment failed to start 2 times in a row.\n{REMOTE}", "ValueError: no such model"),
        (RayTaskError("grade", REMOTE, JudgeError("endpoint down")), "endpoint down"),
        (" \n", "no message"),
        ("x" * 9999, "x" * MAX_GIST_CHARS),
    ],
)
def test_the_gist_of_a_failure_is_the_line_that_says_why(error, line):
    assert gist(error) == line
