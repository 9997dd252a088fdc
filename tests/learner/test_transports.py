"""The sending ends that need no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from actors.errors import WeightSyncError
from actors.weights.layout import TensorSpec, lay_out
from actors.weights.progress import PAGE_BYTES
from actors.weights.staging import file_identity
from learner.sync import transports
from learner.sync.transports import SharedMemoryEnd, open_end

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
    end.begin(value)
    for index in range(len(LAYOUT.bucket_sizes)):
        end.bucket(index).fill_(value)
        end.deliver(index)
    return Path(end.finish()["file"])


def test_two_versions_take_turns_and_the_older_one_stays_readable(root):
    end = SharedMemoryEnd(LAYOUT, timeout_s=5)
    files = [send(end, value) for value in (1, 2, 3)]
    assert files[0] == files[2] != files[1]
    assert files[1].read_bytes()[:-PAGE_BYTES] == bytes([2]) * LAYOUT.num_bytes
    assert files[2].read_bytes()[:-PAGE_BYTES] == bytes([3]) * LAYOUT.num_bytes
    assert int(end.bucket(0)[0]) == 3, "read is what was sent last"
    end.close()


def test_what_is_reserved_is_two_versions_that_have_no_name_and_nobody_else_may_read(root):
    end = SharedMemoryEnd(LAYOUT, timeout_s=5)
    held = [send(end, value).stat() for value in (1, 2)]
    assert [each.st_blocks * 512 for each in held] == [LAYOUT.num_bytes + PAGE_BYTES] * 2, "reserved, not only promised"
    assert [each.st_mode & 0o077 for each in held] == [0, 0]
    assert [each.st_dev for each in held] == [root.stat().st_dev] * 2, "where there is room for them"
    assert not list(root.iterdir())
    end.close()


def test_nothing_is_left_after_close_and_it_can_be_closed_twice(root):
    end = SharedMemoryEnd(LAYOUT, timeout_s=5)
    file = send(end, 1)
    end.close()
    end.close()
    assert not file.exists()


def test_another_process_reads_it_and_a_killed_owner_leaves_nothing(root):
    program = (
        "import sys, time\n"
        "from learner.sync import transports\n"
        "from pathlib import Path\n"
        "from tests.learner.test_transports import LAYOUT, send\n"
        f"transports.staging_root = lambda: Path({str(root)!r})\n"
        "end = transports.SharedMemoryEnd(LAYOUT, timeout_s=5)\n"
        "print(send(end, 7), flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as owner:
        try:
            assert owner.stdout is not None
            file = Path(owner.stdout.readline().strip())
            assert file.read_bytes()[:-PAGE_BYTES] == bytes([7]) * LAYOUT.num_bytes
        finally:
            owner.kill()
    assert not file.exists()
    assert not list(root.iterdir())


def test_only_the_file_itself_has_its_identity(root):
    ends = [SharedMemoryEnd(LAYOUT, timeout_s=5) for _ in range(2)]
    first, second = (end.settings() for end in ends)
    assert file_identity(first["file"]) == first["identity"] != second["identity"]
    ends[0].close()
    with pytest.raises(OSError, match="No such file"):
        file_identity(first["file"])
    ends[1].close()


def test_without_room_for_two_versions_the_reason_is_said(root, monkeypatch):
    huge = lay_out([TensorSpec(name="t", dtype="float32", shape=(1 << 58,))], bucket_bytes=4096)
    with pytest.raises(
        WeightSyncError, match=rf"weights of {(2 << 60) + 2 * PAGE_BYTES} bytes do not fit into {root}.*--shm-size"
    ):
        SharedMemoryEnd(huge, timeout_s=5)
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
        SharedMemoryEnd(LAYOUT, timeout_s=5)
    assert not list(root.iterdir())


def test_shared_memory_is_opened_by_its_name(root):
    end = open_end("shared_memory", LAYOUT, resident=None, device=CPU, num_receivers=3, timeout_s=1)
    assert isinstance(end, SharedMemoryEnd)
    assert not end.is_rendezvous
    end.close()


def test_a_transport_without_memory_for_buckets_cannot_be_made():
    class Nowhere(transports.SendingEnd):
        pass

    with pytest.raises(TypeError, match="bucket"):
        Nowhere()
