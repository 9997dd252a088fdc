"""Weights written to shared memory: whole, or not at all."""

import resource

import numpy as np
import pytest

from actors.engine.staging import staging_root, write_buckets
from actors.errors import WeightSyncError


def test_buckets_are_written_byte_for_byte(tmp_path):
    buckets = [np.arange(size, dtype=np.uint8) for size in (1, 200, 7)]
    folder = write_buckets(buckets, tmp_path)
    assert sorted(file.name for file in folder.iterdir()) == ["0", "1", "2"]
    for number, bucket in enumerate(buckets):
        assert (folder / str(number)).read_bytes() == bucket.tobytes()


def test_buckets_that_do_not_fit_are_refused_before_anything_is_written(tmp_path):
    bucket = np.broadcast_to(np.uint8(0), 1 << 60)  # a claim of an exbibyte, of one byte of memory
    with pytest.raises(WeightSyncError, match=rf"{1 << 60} bytes cannot be staged in {tmp_path}, which has \d+ bytes"):
        write_buckets([bucket], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sizes", [(1 << 20,), (100, 1 << 20), (100, 1 << 20, 100)])
def test_a_write_that_fails_half_way_leaves_nothing_behind(tmp_path, sizes):
    """The limit on a file's size ends a write with an OSError, as a full file system does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(WeightSyncError, match=rf"weights of {sum(sizes)} bytes .*{tmp_path}.*--shm-size"):
            write_buckets([np.zeros(size, np.uint8) for size in sizes], tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_weights_are_staged_in_memory_where_there_is_a_file_system_for_that():
    assert staging_root().is_dir()
