"""The sending ends that need no GPU, and the thread that carries those that do."""

import os
import threading
from pathlib import Path

import pytest
import torch

from actors.errors import WeightSyncError
from actors.weights.layout import TensorSpec, lay_out
from learner import transports
from learner.transports import SharedMemoryEnd, open_end

LAYOUT = lay_out(
    [TensorSpec(name=f"t{number}", dtype="float32", shape=(1024,)) for number in range(3)], bucket_bytes=4096
)
CPU = torch.device("cpu")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(transports, "staging_root", lambda: tmp_path)
    return tmp_path


def send(end, value):
    """A version whose bytes all have this value; returns its file."""
    end.begin()
    for index in range(len(LAYOUT.bucket_sizes)):
        end.bucket(index).fill_(value)
        end.deliver(index)
    return Path(end.finish()["file"])


def test_two_versions_take_turns_and_the_older_one_stays_readable(root):
    end = SharedMemoryEnd(LAYOUT)
    files = [send(end, value) for value in (1, 2, 3)]
    assert files[0] == files[2] != files[1]
    assert files[1].read_bytes() == bytes([2]) * LAYOUT.num_bytes
    assert files[2].read_bytes() == bytes([3]) * LAYOUT.num_bytes
    assert int(end.bucket(0)[0]) == 3, "read is what was sent last"


def test_what_is_reserved_is_two_versions_that_nobody_else_may_read(root):
    end = SharedMemoryEnd(LAYOUT)
    (folder,) = root.iterdir()
    assert end.settings() == {"folder": str(folder)}
    assert folder.stat().st_mode & 0o077 == 0
    held = [file.stat().st_blocks * 512 for file in folder.iterdir()]
    assert held == [LAYOUT.num_bytes] * 2, "reserved, not only promised"


def test_nothing_is_left_after_close_and_it_can_be_closed_twice(root):
    end = SharedMemoryEnd(LAYOUT)
    send(end, 1)
    end.close()
    end.close()
    assert not list(root.iterdir())


def test_without_room_for_two_versions_the_reason_is_said(root, monkeypatch):
    huge = lay_out([TensorSpec(name="t", dtype="float32", shape=(1 << 58,))], bucket_bytes=4096)
    with pytest.raises(WeightSyncError, match=rf"weights of {2 << 60} bytes do not fit into {root}.*--shm-size"):
        SharedMemoryEnd(huge)
    assert not list(root.iterdir())


@pytest.mark.parametrize("num_files", [0, 1])
def test_room_that_somebody_else_took_first_is_named_and_nothing_is_left(root, monkeypatch, num_files):
    reserve = os.posix_fallocate
    reserved = []

    def fill_up(descriptor, offset, size):
        if len(reserved) == num_files:
            raise OSError(28, "No space left on device")
        reserved.append(size)
        reserve(descriptor, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", fill_up)
    with pytest.raises(WeightSyncError, match=rf"no room for two versions .*{root}.*No space left on device"):
        SharedMemoryEnd(LAYOUT)
    assert not list(root.iterdir())


def test_shared_memory_is_opened_by_its_name(root):
    end = open_end("shared_memory", LAYOUT, device=CPU, num_receivers=3, timeout_s=1)
    assert isinstance(end, SharedMemoryEnd)
    assert not end.is_rendezvous
    end.close()


def test_a_call_with_a_deadline_gives_its_result():
    assert transports._Deadline(lambda: "group", CPU).wait(5, "joining") == "group"


@pytest.mark.parametrize("failure", [RuntimeError("NCCL error 5"), OSError("connection refused")], ids=repr)
def test_a_call_that_fails_on_its_thread_is_a_failed_sync(failure):
    def fail():
        raise failure

    with pytest.raises(WeightSyncError, match=f"joining: {failure}"):
        transports._Deadline(fail, CPU).wait(5, "joining")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_on_its_thread_is_not_taken_for_success():
    def fail():
        raise KeyError("a bug")

    with pytest.raises(WeightSyncError, match="joining: it ended without a result"):
        transports._Deadline(fail, CPU).wait(5, "joining")


def test_a_call_that_does_not_end_is_left_behind():
    go_on = threading.Event()
    waiting = transports._Deadline(go_on.wait, CPU)
    with pytest.raises(WeightSyncError, match=r"joining did not end within weights\.timeout_s=0\.02"):
        waiting.wait(0.02, "joining")
    go_on.set()
    assert waiting.wait(5, "joining") is True
