"""Weights written to shared memory: whole, or not at all."""

import resource

import numpy as np
import pytest

from actors.errors import WeightSyncError
from actors.weights.staging import check_room, staging_root, write_version


def test_buckets_are_written_one_after_the_other(tmp_path):
    buckets = [np.arange(size, dtype=np.uint8) for size in (1, 200, 7)]
    file = write_version(buckets, tmp_path)
    assert file.parent == tmp_path
    assert file.read_bytes() == b"".join(bucket.tobytes() for bucket in buckets)


def test_two_versions_never_share_a_file(tmp_path):
    assert write_version([np.zeros(1, np.uint8)], tmp_path) != write_version([np.ones(1, np.uint8)], tmp_path)


def test_buckets_that_do_not_fit_are_refused_before_anything_is_written(tmp_path):
    bucket = np.broadcast_to(np.uint8(0), 1 << 60)  # a claim of an exbibyte, of one byte of memory
    with pytest.raises(WeightSyncError, match=rf"{1 << 60} bytes do not fit into {tmp_path}, which has \d+ bytes free"):
        write_version([bucket], tmp_path)
    assert not list(tmp_path.iterdir())


def test_room_is_what_is_free(tmp_path):
    check_room(0, tmp_path)
    check_room(1, tmp_path)
    with pytest.raises(WeightSyncError, match=r"free some, or enlarge it .*--shm-size"):
        check_room(1 << 60, tmp_path)


@pytest.mark.parametrize("sizes", [(1 << 20,), (100, 1 << 20), (100, 1 << 20, 100)])
def test_a_write_that_fails_half_way_leaves_nothing_behind(tmp_path, sizes):
    """The limit on a file's size ends a write with an OSError, as a full file system does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(
            WeightSyncError, match=rf"weights of {sum(sizes)} bytes .*{tmp_path}.*File too large.*--shm"
        ):
            write_version([np.zeros(size, np.uint8) for size in sizes], tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_weights_are_staged_in_memory_where_there_is_a_file_system_for_that():
    assert staging_root().is_dir()
