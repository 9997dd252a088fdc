"""Clusters that were started elsewhere: another folder, another token, killed."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.ray.heads import address_of, join, running_head

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def head():
    """A head with a token of its own."""
    folder = Path("/tmp") / f"vt-{os.getpid()}"  # short: sockets lie below
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}
    with running_head(folder, "--include-dashboard=false", **token) as started:
        yield started


def test_a_head_that_was_started_in_another_folder_is_joined(head):
    _, environment = head
    address_of(environment)
    deadline = time.monotonic() + 60
    told = ""
    while told != "joined True" and time.monotonic() < deadline:
        told, _ = join(environment)  # the head leaves its note before it is wholly up
    assert told == "joined True"


@pytest.mark.parametrize("token", [None, "b" * 64])
def test_a_driver_without_the_token_is_told_how_to_get_it(head, token):
    _, environment = head
    theirs = {name: value for name, value in environment.items() if not name.startswith("RAY_")}
    theirs |= {"RAY_ADDRESS": str(address_of(environment)), "RAY_TMPDIR": "/tmp/none", "HOME": "/nowhere"}
    if token:
        theirs |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    told, seconds = join(theirs)
    assert told.startswith("RunError the Ray cluster at ")
    assert "requires a token: set RAY_AUTH_MODE=token" in told
    assert "\n" not in told
    assert seconds < 20, "starting Python and importing Ray included"


def test_a_head_that_was_killed_is_told_with_the_way_to_clear_its_note(head):
    process, environment = head
    address = address_of(environment)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    told, seconds = join(environment)
    assert told.startswith(f"RunError no Ray cluster responds at {address}")
    assert "`ray stop` clears this note" in told
    assert seconds < 20
