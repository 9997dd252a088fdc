"""Following a version in shared memory: what is there, what is not yet, and what never comes."""

import threading
import time

import pytest
import torch

from actors.errors import WeightSyncError
from actors.weights.progress import PAGE_BYTES, Follower, Progress


@pytest.fixture
def files(tmp_path):
    """Two files of a sender that has sent nothing, by path."""
    made = {}
    for number in range(2):
        path = tmp_path / str(number)
        path.touch()
        made[str(path)] = Progress(torch.zeros(PAGE_BYTES, dtype=torch.uint8))
        made[str(path)].end()
    return made


def follower(files, version, *, timeout_s=10.0, leave=None):
    return Follower(files, version, timeout_s=timeout_s, leave=leave or threading.Event())


def later(call, seconds=0.05):
    threading.Timer(seconds, call).start()


def test_both_ends_see_the_same_words():
    page = torch.zeros(PAGE_BYTES, dtype=torch.uint8)
    sender, receiver = Progress(page), Progress(page)
    sender.begin(3)
    assert (receiver.written(3), receiver.written(2)) == (0, None)
    sender.advance(100)
    assert receiver.written(3) == 100
    sender.end()
    assert receiver.written(3) is None


def test_bytes_of_an_earlier_version_in_the_same_file_are_not_taken_for_this_ones(files):
    (one, first), (other, second) = files.items()
    for version, progress in ((1, first), (2, second), (3, first)):
        progress.begin(version)
        assert progress.written(version) == 0
        progress.advance(500)
    assert first.written(1) is None
    assert follower(files, 3).find() == one
    assert follower(files, 2).find() == other


def test_a_version_that_was_sent_before_and_released_is_waited_for_until_it_is_sent_again(files):
    (_, first), (other, second) = files.items()
    first.begin(7)
    first.advance(500)
    first.end()
    later(lambda: second.begin(7))
    assert follower(files, 7).find() == other


def test_a_receiver_waits_for_the_bytes_that_it_asks_for(files):
    path, progress = next(iter(files.items()))
    progress.begin(1)
    progress.advance(10)
    follows = follower(files, 1)
    follows.wait(path, 10)
    started = time.monotonic()
    later(lambda: progress.advance(11))
    follows.wait(path, 11)
    assert time.monotonic() - started >= 0.04


@pytest.mark.parametrize("has_begun", [False, True])
def test_what_does_not_come_in_time_is_named(files, has_begun):
    path, progress = next(iter(files.items()))
    what = "did not begin"
    if has_begun:
        progress.begin(1)
        progress.advance(10)
        what = "stopped at byte 10"
    follows = follower(files, 1, timeout_s=0.05)
    with pytest.raises(WeightSyncError, match=rf"^version 1 {what} within weights.timeout_s=0.05$"):
        follows.wait(path, 11) if has_begun else follows.find()


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_sender_that_is_gone_is_noticed_long_before_the_deadline(files, has_begun, tmp_path):
    path, progress = next(iter(files.items()))
    if has_begun:
        progress.begin(1)
    later((tmp_path / "0").unlink)
    started = time.monotonic()
    with pytest.raises(WeightSyncError, match="the learner is gone"):
        follower(files, 1).wait(path, 1) if has_begun else follower(files, 1).find()
    assert time.monotonic() - started < 2


def test_who_leaves_waits_no_longer(files):
    leave = threading.Event()
    later(leave.set)
    with pytest.raises(WeightSyncError, match="left the learner before version 1 was there"):
        follower(files, 1, leave=leave).find()


@pytest.mark.parametrize("end", [lambda progress: progress.end(), lambda progress: progress.begin(3)])
def test_a_version_that_is_given_up_in_the_middle_is_not_waited_for(files, end):
    path, progress = next(iter(files.items()))
    progress.begin(1)
    follows = follower(files, 1)
    later(lambda: end(progress))
    with pytest.raises(WeightSyncError, match=r"version 1 of the weights in .* was given up"):
        follows.wait(path, 1)
