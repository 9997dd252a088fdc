"""Model folders that no engine can load, found by their files."""

import json
import shutil
from pathlib import Path

import pytest

from actors.hub import looks_like_hub_id
from cluster.preflight.model_files import (
    find_lfs_pointers,
    length_problem,
    longest_sequence,
    model_folder_problems,
)

TINY = Path(__file__).resolve().parents[3] / "configs" / "tiny"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 1234\n"


@pytest.fixture
def model(tmp_path):
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def problems(folder, **settings):
    return list(model_folder_problems("model.path", str(folder), **settings))


def test_the_shipped_model_has_no_problem():
    assert problems(TINY) == []


def test_a_pointer_of_git_lfs_in_the_place_of_weights_is_named_with_the_remedy(model):
    (model / "model.safetensors").write_text(POINTER)
    (problem,) = problems(model)
    assert "Git LFS pointers instead of model.safetensors" in problem
    assert "git lfs pull" in problem


def test_pointers_are_found_in_folders_and_files_but_not_in_hidden_ones(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / ".git").mkdir()
    for name in ("a.parquet", "train/b.parquet", ".git/c"):
        (tmp_path / name).write_text(POINTER)
    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    assert [file.name for file in find_lfs_pointers(tmp_path)] == ["a.parquet", "b.parquet"]
    assert find_lfs_pointers(tmp_path / "a.parquet") == [tmp_path / "a.parquet"]


@pytest.mark.parametrize("keep", [0, 4, 100, 2_000_000])
def test_weights_that_were_cut_short_are_found_by_their_header(model, keep):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    (problem,) = problems(model)
    assert "damaged model.safetensors" in problem


def test_bytes_that_are_no_safetensors_are_found(model):
    (model / "model.safetensors").write_bytes((20).to_bytes(8, "little") + b"<html>not found</htm" + b"x" * 50)
    assert "its header cannot be read" in problems(model)[0]


def test_a_shard_that_the_index_names_must_be_there(model):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00003.safetensors", "c": "x.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (problem,) = problems(model)
    assert "lacks model-00002-of-00003.safetensors and 1 more files" in problem


def test_a_folder_without_weights_serves_random_ones_alone(model):
    (model / "model.safetensors").unlink()
    assert "holds no weights" in problems(model)[0]
    assert problems(model, needs_weights=False) == []


def test_a_config_that_is_no_json_is_refused(model):
    (model / "config.json").write_text("{")
    assert "config.json is not a JSON object" in problems(model)[0]


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-VL-3B-Instruct", "openai-community/gpt2"])
def test_an_id_of_a_hub_gives_the_way_to_a_folder(name):
    assert looks_like_hub_id(name)
    (problem,) = problems(name)
    assert f"hf download {name} --local-dir models/{name.split('/')[1]}" in problem


@pytest.mark.parametrize("name", ["/a/b", "./a", "a", "a/b/c", "~/a", "../a", "models/Qwen2.5-VL-7B-Instruct"])
def test_a_path_is_no_id(name, tmp_path):
    assert not looks_like_hub_id(name)
    (problem,) = problems(tmp_path / "models" / "Qwen2.5-VL")
    assert "`hf download OWNER/Qwen2.5-VL --local-dir" in problem


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"text_config": {"max_position_embeddings": 4096}}, 4096),
        ({"max_position_embeddings": 100, "text_config": {"max_position_embeddings": 4096}}, 4096),
        ({"n_positions": 1024}, 1024),
        ({"max_position_embeddings": 4096, "seq_length": 2048}, 2048),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 2.0}}, 8192),
        ({"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 16384),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "mrope", "factor": None}}, 4096),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 131072),
        ({"max_position_embeddings": 2048, "rope_parameters": {"rope_type": "default"}}, 2048),
        ({}, None),
    ],
)
def test_the_longest_sequence_is_read_as_the_engine_reads_it(config, longest):
    assert longest_sequence(config) == longest


@pytest.mark.parametrize(("wanted", "fits"), [(560, True), (2048, True), (2049, False), (40048, False)])
def test_a_length_beyond_the_models_names_both(wanted, fits):
    problem = length_problem(wanted, f"rollout.max_prompt_tokens={wanted}", TINY, "model.path")
    assert (problem is None) == fits
    if problem:
        assert str(wanted) in problem
        assert "at most 2048" in problem


def header(**changes):
    return {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}}


@pytest.mark.parametrize(
    "content",
    [
        [],
        5,
        {"a": None},
        {"__metadata__": 5},
        header(data_offsets=["0", "4"]),
        header(data_offsets=[0, -4]),
        header(data_offsets=[0, 1e300]),
        header(data_offsets={"1": 4}),
        header(data_offsets=[0, 8]),
        header(shape=[2]),
        header(shape=[2**63, 2**63]),
        header(dtype="X"),
    ],
)
def test_a_header_that_is_malformed_is_a_flaw_and_no_traceback(content, model):
    encoded = json.dumps(content).encode()
    (model / "model.safetensors").write_bytes(len(encoded).to_bytes(8, "little") + encoded + b"0000")
    (problem,) = problems(model)
    assert "holds a damaged model.safetensors" in problem
    assert "copy the model again" in problem


@pytest.mark.parametrize("encoded", [b"[" * 100_000, b"\xff" * 10, b'{"a": ' + b"1" * 5000 + b"}", b""])
def test_a_header_that_is_no_json_is_a_flaw(encoded, model):
    (model / "model.safetensors").write_bytes(len(encoded).to_bytes(8, "little") + encoded)
    assert "its header cannot be read" in problems(model)[0]


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": [1]}}'])
def test_an_index_without_files_is_a_flaw(index, model):
    (model / "model.safetensors.index.json").write_text(index)
    assert "damaged model.safetensors.index.json" in problems(model)[0]
