"""Every reader of config.json takes both of its layouts: flat, as the Hub has Qwen2.5-VL, and nested."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from actors.config_json import read_config_json, text_settings, vision_settings
from actors.engine.budget import ModelWidths
from actors.images import ViewSpec
from cluster.planning.models import find_model
from cluster.preflight.model_files import longest_sequence
from configs.schema import ModelConfig
from learner.families.lookup import PUBLISHED, read_shape

FOLDERS = Path(__file__).parent / "published"
SIZES = ("3b", "7b")


def published(size):
    """Folder with the config.json of Qwen2.5-VL-3B-Instruct or -7B-Instruct as the Hub has it."""
    return FOLDERS / f"qwen2.5-vl-{size}"


@pytest.fixture(params=["flat", "nested"])
def folder(request, tmp_path):
    """The 3B model's, as it is published and as the library saves it today."""
    if request.param == "flat":
        return published("3b")
    AutoConfig.from_pretrained(published("3b")).save_pretrained(tmp_path)
    assert "hidden_size" not in json.loads((tmp_path / "config.json").read_text())
    return tmp_path


@pytest.mark.parametrize("size", SIZES)
def test_the_parameters_of_a_published_file_are_counted_as_the_library_makes_them(size):
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(published(size)))
    assert read_shape(read_config_json(published(size))).num_parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("size", SIZES)
def test_a_published_file_says_what_is_known_of_its_name(size):
    found = find_model(str(published(size)))
    assert read_shape(found) == read_shape(PUBLISHED[f"qwen2.5-vl-{size}"])
    assert ModelWidths.from_config(found) == ModelWidths.from_config(PUBLISHED[f"qwen2.5-vl-{size}"])


def test_all_readers_take_both_layouts(folder):
    config = read_config_json(folder)
    assert read_shape(config) == read_shape(PUBLISHED["qwen2.5-vl-3b"])
    assert ModelWidths.from_model(str(folder)) == ModelWidths.from_config(PUBLISHED["qwen2.5-vl-3b"])
    assert longest_sequence(config) == 128_000
    spec = ViewSpec.from_model(ModelConfig(path=str(folder), min_pixels=56 * 56, max_pixels=10**6))
    assert (spec.patch_size, spec.merge_size, spec.temporal_patch_size) == (14, 2, 2)


def test_what_stands_in_a_section_comes_before_the_top():
    config = {"hidden_size": 1, "vocab_size": 9, "text_config": {"hidden_size": 2}, "vision_config": {"in_chans": 4}}
    assert (text_settings(config)["hidden_size"], text_settings(config)["vocab_size"]) == (2, 9)
    assert vision_settings(config)["in_channels"] == 4
    assert vision_settings({"vision_config": None}) == vision_settings({}) == {}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"a": ' + "1" * 5000 + "}", "\ufeff{}"])
def test_a_file_that_is_no_json_object_is_named(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is not (JSON|a JSON object).*copy the model again"):
        read_config_json(tmp_path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"vision_config": None}, "has no 'hidden_size'"),
        ({"vocab_size": "many"}, "has an invalid size"),
        ({"num_attention_heads": 0}, "has an invalid size"),
        ({"text_config": {"hidden_size": None}}, "has an invalid size"),
    ],
)
def test_a_shape_without_its_numbers_is_refused(changes, told):
    with pytest.raises(ValueError, match=f"config.json {told}"):
        read_shape(read_config_json(published("3b")) | changes)
