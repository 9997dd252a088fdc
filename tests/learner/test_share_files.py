import resource

import numpy as np
import pytest
from safetensors.numpy import load_file

from actors.errors import CheckpointError
from learner.state import share_files
from learner.state.checkpoint import CheckpointFolder
from learner.state.share_files import SavedLearner, complete_state, write_share
from learner.state.snapshot import Piece
from tests.learner.test_snapshot import ONE, SHAPES, THREE, TWO, share


@pytest.fixture(params=[1 << 29, 60, 12])
def file_bytes(request, monkeypatch):
    """Files of a whole share, of five elements, and of one."""
    monkeypatch.setattr(share_files, "FILE_BYTES", request.param)
    return request.param


def write(checkpoints, shares, step=1):
    folder = checkpoints.begin(step)
    written = [write_share(each, checkpoints.storage, folder) for each in shares]
    return checkpoints.seal(step, complete_state(written, checkpoints.storage, folder))


@pytest.mark.parametrize("url", ["{tmp}", "memory://{name}"])
@pytest.mark.parametrize("written", [ONE, TWO, THREE])
@pytest.mark.parametrize("read", [ONE, TWO, THREE])
def test_any_number_of_ranks_reads_the_files_of_any_other(tmp_path, file_bytes, url, written, read):
    checkpoints = CheckpointFolder(url.format(tmp=tmp_path, name=tmp_path.name))
    name = write(checkpoints, [share(rank, ranges) for rank, ranges in enumerate(written)])
    saved = SavedLearner.open(checkpoints.storage, name)
    assert saved.counters.optimizer_step == 3
    for rank, ranges in enumerate(read):
        expected = share(0, ranges, padding=0)
        target = np.zeros_like(expected.state_3N)
        saved.fill(target, expected.pieces, SHAPES)
        assert np.array_equal(target, expected.state_3N)
        assert saved.rng(rank)["cpu"].tolist() == [rank if rank < len(written) else 0]


def test_whole_weights_are_read_for_an_export(tmp_path, file_bytes):
    checkpoints = CheckpointFolder(tmp_path)
    name = write(checkpoints, [share(rank, ranges) for rank, ranges in enumerate(THREE)])
    weights = dict(SavedLearner.open(checkpoints.storage, name).weights())
    assert np.array_equal(weights["a"], np.arange(10, dtype=np.float32).reshape(2, 5))
    assert np.array_equal(weights["b"], -np.arange(7, dtype=np.float32))


def test_the_files_are_what_the_safetensors_library_reads(tmp_path):
    checkpoints = CheckpointFolder(tmp_path)
    name = write(checkpoints, [share(0, ONE[0])])
    tensors = load_file(tmp_path / name / "learner-00000-00000.safetensors")
    assert {key: tensor.shape for key, tensor in tensors.items()} == {
        "weight": (19,),
        "exp_avg": (19,),
        "exp_avg_sq": (19,),
    }
    assert tensors["exp_avg"][:10].tolist() == list(range(100, 110))


def test_a_rank_opens_only_the_files_with_its_part(tmp_path, monkeypatch):
    checkpoints = CheckpointFolder(tmp_path)
    name = write(checkpoints, [share(rank, ranges) for rank, ranges in enumerate(THREE)])
    saved = SavedLearner.open(checkpoints.storage, name)
    opened, open_file = [], checkpoints.storage.open
    monkeypatch.setattr(checkpoints.storage, "open", lambda path: opened.append(path) or open_file(path))
    saved.fill(np.zeros((3, 4), np.float32), [Piece(name="a", start=0, stop=4, offset=0)], SHAPES)
    assert [path for path in opened if path.endswith(".safetensors")] == [f"{name}/learner-00000-00000.safetensors"]


def test_a_damaged_file_is_refused_by_who_reads_it_alone(tmp_path):
    checkpoints = CheckpointFolder(tmp_path)
    name = write(checkpoints, [share(rank, ranges) for rank, ranges in enumerate(TWO)])
    file = tmp_path / name / "learner-00001-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    saved = SavedLearner.open(checkpoints.storage, name)
    saved.fill(np.zeros((3, 8), np.float32), share(0, TWO[0], padding=0).pieces, SHAPES)
    with pytest.raises(CheckpointError, match=r"learner-00001-00000\.safetensors has hash"):
        saved.fill(np.zeros((3, 9), np.float32), share(0, TWO[1], padding=0).pieces, SHAPES)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"learner-00001-00000\.safetensors cannot be read"):
        saved.fill(np.zeros((3, 9), np.float32), share(0, TWO[1], padding=0).pieces, SHAPES)


@pytest.mark.parametrize(
    ("shares", "problem"),
    [
        ([share(0, TWO[0])], "are missing"),
        ([share(0, TWO[0]), share(1, TWO[1], step=4)], "different steps: {0: 3, 1: 4}"),
    ],
)
def test_shares_that_are_not_one_state_are_not_sealed(tmp_path, shares, problem):
    checkpoints = CheckpointFolder(tmp_path)
    with pytest.raises(CheckpointError, match=problem):
        write(checkpoints, shares)
    assert checkpoints.list() == []


def test_a_file_larger_than_allowed_is_a_checkpoints_error(tmp_path):
    """As on a full disk: the call that writes fails half way."""
    many = 1 << 16
    big = share(0, [("a", 0, 10), ("b", 0, 7)], padding=many)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = CheckpointFolder(tmp_path)
    folder = checkpoints.begin(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * many, hard))
    try:
        with pytest.raises(
            CheckpointError, match=r"learner-00000-00000\.safetensors could not be written: .*too large"
        ):
            write_share(big, checkpoints.storage, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
