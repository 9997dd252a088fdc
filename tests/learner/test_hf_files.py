import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from actors.errors import CheckpointError
from learner import hf_files
from learner.hf_files import write_shards


@pytest.mark.parametrize(("shard_bytes", "num_files"), [(1, 5), (800, 3), (10**6, 1)])
def test_every_tensor_is_in_the_file_that_is_named_for_it(tmp_path, monkeypatch, shard_bytes, num_files):
    monkeypatch.setattr(hf_files, "SHARD_BYTES", shard_bytes)
    tensors = {f"t{i}": torch.full((100,), float(i)) for i in range(5)}
    files = write_shards(tensors.items(), tmp_path, "part")
    assert list(files) == list(tensors)
    assert sorted({*files.values()}) == [f"part-{i:05d}.safetensors" for i in range(num_files)]
    for key, name in files.items():
        assert torch.equal(load_file(tmp_path / name)[key], tensors[key])


def test_a_file_keeps_the_values_of_the_moment_in_which_its_tensor_was_taken(tmp_path):
    reused = torch.zeros(2)

    def tensors():
        for i in range(3):
            reused.fill_(i)
            yield f"t{i}", reused

    files = write_shards(tensors(), tmp_path, "part")
    assert [load_file(tmp_path / files[f"t{i}"])[f"t{i}"].tolist() for i in range(3)] == [[0, 0], [1, 1], [2, 2]]


def test_a_disk_that_refuses_is_a_checkpoints_error_with_the_file(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(hf_files, "save_file", refuse)
    with pytest.raises(CheckpointError, match=r"part-00000\.safetensors could not be written to .*No space left"):
        write_shards([("t", torch.zeros(1))], tmp_path, "part")
