import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from learner import hf_files
from learner.families.lookup import FAMILIES
from learner.hf_folder import save_hf
from tests.learner.builders import save_model, small_model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_names_are_those_of_the_librarys_checkpoints(tmp_path, family, tied):
    model = small_model(family=family, tied=tied)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert {FAMILIES[family].name_in_files(name) for name, _ in model.named_parameters()} == set(file.keys())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shard_bytes", [1 << 30, 50_000])
def test_an_exported_folder_is_one_that_transformers_loads(tmp_path, monkeypatch, family, shard_bytes):
    monkeypatch.setattr(hf_files, "SHARD_BYTES", shard_bytes)
    source, target = tmp_path / "source", tmp_path / "target"
    model = small_model(family=family, seed=0)
    save_model(source, small_model(family=family, seed=1))
    target.mkdir()
    (target / "model.safetensors").write_bytes(b"of an earlier export")
    save_hf(model.named_parameters(), target, source=source)
    loaded, report = AutoModelForImageTextToText.from_pretrained(
        target, local_files_only=True, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for (name, expected), (_, found) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(found, expected), name
    assert (target / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_a_model_of_several_files_comes_with_an_index(tmp_path, monkeypatch):
    monkeypatch.setattr(hf_files, "SHARD_BYTES", 50_000)
    save_model(tmp_path / "source", small_model())
    save_hf(small_model().named_parameters(), tmp_path / "target", source=tmp_path / "source")
    index = json.loads((tmp_path / "target" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    for file in set(index["weight_map"].values()):
        held = load_file(tmp_path / "target" / file)
        assert {name for name, where in index["weight_map"].items() if where == file} == set(held)
