import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import Qwen2_5_VLForConditionalGeneration

from actors.engine.weight_receiver import bytes_digest, verified_tensors
from learner import shards
from learner.weight_sender import checkpoint_name, pack_weights, raw_bytes, save_hf
from tests.learner.builders import save_model, small_model


def test_names_are_those_of_the_librarys_checkpoints(tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert {checkpoint_name(name) for name, _ in model.named_parameters()} == set(file.keys())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bucket_bytes", [1, 10_000, 1 << 30])
def test_buckets_hold_every_tensor_whole(dtype, bucket_bytes):
    model = small_model().to(dtype)
    manifest, buckets = pack_weights(model.named_parameters(), version=3, bucket_bytes=bucket_bytes)
    by_name = {checkpoint_name(name): p.detach() for name, p in model.named_parameters()}
    assert manifest.version == 3
    assert [tensor.name for tensor in manifest.tensors] == list(by_name)
    assert sum(bucket.nbytes for bucket in buckets) == manifest.num_bytes
    for spec, content in verified_tensors(manifest, buckets):
        rebuilt = torch.from_numpy(content.copy()).view(getattr(torch, spec.dtype)).reshape(spec.shape)
        assert torch.equal(rebuilt, by_name[spec.name])


def test_a_bucket_is_closed_once_it_is_full():
    tensors = [(f"t{i}", torch.zeros(100)) for i in range(10)]
    manifest, buckets = pack_weights(tensors, version=0, bucket_bytes=1000)
    assert [bucket.nbytes for bucket in buckets] == [1200, 1200, 1200, 400]
    assert [(t.bucket, t.offset) for t in manifest.tensors][:4] == [(0, 0), (0, 400), (0, 800), (1, 0)]


def test_packed_weights_stay_as_they_were_when_the_model_goes_on():
    parameter = torch.ones(4)
    manifest, buckets = pack_weights([("w", parameter)], version=0, bucket_bytes=1000)
    parameter.zero_()
    assert bytes_digest(buckets[0].data) == manifest.tensors[0].digest
    assert buckets[0].view(np.float32).tolist() == [1.0] * 4


def test_raw_bytes_are_those_of_the_values():
    assert raw_bytes(torch.tensor([1.0, -2.0])).tobytes() == np.array([1.0, -2.0], np.float32).tobytes()
    assert raw_bytes(torch.tensor([[1, 2], [3, 4]]).T).tobytes() == np.array([1, 3, 2, 4]).tobytes()


@pytest.mark.parametrize("shard_bytes", [1 << 30, 50_000])
def test_an_exported_folder_is_one_that_transformers_loads(tmp_path, monkeypatch, shard_bytes):
    monkeypatch.setattr(shards, "SHARD_BYTES", shard_bytes)
    source, target = tmp_path / "source", tmp_path / "target"
    model = small_model(seed=0)
    save_model(source, small_model(seed=1))
    target.mkdir()
    (target / "model.safetensors").write_bytes(b"of an earlier export")
    save_hf(model.named_parameters(), target, source=source)
    loaded, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        target, local_files_only=True, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for (name, expected), (_, found) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(found, expected), name
    assert (target / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_a_model_of_several_files_comes_with_an_index(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 50_000)
    save_model(tmp_path / "source", small_model())
    save_hf(small_model().named_parameters(), tmp_path / "target", source=tmp_path / "source")
    index = json.loads((tmp_path / "target" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    for file in set(index["weight_map"].values()):
        held = load_file(tmp_path / "target" / file)
        assert {name for name, where in index["weight_map"].items() if where == file} == set(held)
