"""The one place where the families of models are told apart."""

import ast
from pathlib import Path

import pytest

from configs.paths import ROOT
from learner.families.architectures import ARCHITECTURES
from learner.families.lookup import FAMILIES, PUBLISHED, find_family, find_shape, read_shape
from tests.learner.builders import small_model


def test_every_family_that_is_known_can_compute():
    assert list(ARCHITECTURES) == list(FAMILIES)


@pytest.mark.parametrize("config", [{"model_type": "llama"}, {"model_type": "qwen3_vl_moe"}, {"model_type": []}, {}, 3])
def test_other_families_are_refused_with_the_supported_ones_and_nothing_is_said_of_their_memory(config):
    with pytest.raises(
        ValueError, match=r"model\.path='x' is invalid: .* qwen2_5_vl \(Qwen2\.5-VL\), qwen3_vl \(Qwen3-VL\), not"
    ):
        find_family(config, "model.path='x'")
    assert find_shape(config) is None


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_is_of_its_family(name):
    family = find_family(PUBLISHED[name], name)
    assert name.startswith(family.title.lower())
    assert read_shape(PUBLISHED[name]).num_features == (1 if family.model_type == "qwen2_5_vl" else 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_librarys_class_is_the_one_that_config_json_names(family):
    assert type(small_model(family=family)).__name__ == FAMILIES[family].architecture


def test_no_other_file_knows_a_family_by_its_name():
    folders = ("configs", "actors", "judge", "learner", "cluster")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    allowed = {Path("cluster/cli.py"), Path("learner/tiny/warmstart.py")}  # the default of --family

    def names(file):
        strings = (node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant))
        return any(text in FAMILIES for text in strings if isinstance(text, str))

    found = {file.relative_to(ROOT) for file in files if names(file)}
    assert {file for file in found if file.parent != Path("learner/families")} == allowed
