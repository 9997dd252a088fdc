"""Paths are settled once, by the driver: another process, in another folder, opens the same files."""

from pathlib import Path

import pytest

from configs.load import load_config
from configs.paths import ROOT, maybe_meant, resolve_paths
from configs.schema import Config

PATHS = {
    "run.dir": "out",
    "data.train": "sets/train.parquet",
    "data.heldout": "./sets/heldout.parquet",
    "judge.cache": "cache/verdicts.sqlite",
    "judge.llm.api_key_file": "./judge.key",
    "judge.llm.prompt": "wording.yaml",
    "model.path": "my model",
    "model.prompt": "style.yaml",
}


def value(config: Config, key: str) -> str:
    found = config
    for name in key.split("."):
        found = getattr(found, name)
    return str(found)


def resolved(base, **overrides):
    settings = [f"{key}={path}" for key, path in (PATHS | overrides).items()]
    return resolve_paths(load_config("tiny", settings), base=base)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my model").mkdir()
    for name in ("style.yaml", "wording.yaml"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize("key", PATHS)
def test_every_path_that_is_relative_becomes_absolute(key, folder):
    assert value(resolved(folder), key) == str(folder / PATHS[key])


@pytest.mark.parametrize("key", PATHS)
def test_the_home_folder_is_expanded_and_absolute_paths_stay(key, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    plain = PATHS[key].removeprefix("./")
    assert value(resolved(Path("/elsewhere"), **{key: f"~/{plain}"}), key) == str(folder / plain)
    assert value(resolved(Path("/elsewhere"), **{key: f"{folder}/{plain}"}), key) == str(folder / plain)


def test_settled_twice_is_settled_once(folder):
    once = resolved(folder)
    assert resolve_paths(once, base=Path("/elsewhere")) == once


def test_what_is_shipped_is_found_from_anywhere(tmp_path):
    config = resolve_paths(load_config("tiny"), base=tmp_path)
    assert config.model.path == str(ROOT / "configs" / "tiny")
    assert (config.model.prompt, config.judge.llm.prompt) == ("tiny", "judge")


def test_what_is_nowhere_stays_as_it_was_written_for_the_error(tmp_path):
    config = resolve_paths(load_config("tiny", ["model.path=Qwen/Qwen2.5-VL-3B-Instruct", "model.prompt=nope"]))
    assert (config.model.path, config.model.prompt) == ("Qwen/Qwen2.5-VL-3B-Instruct", "nope")


def test_the_model_of_a_judge_is_a_folder_only_where_the_cluster_serves_it(folder):
    names = ["judge.llm.model=my model"]
    served = resolve_paths(load_config("tiny", [*names, "judge.chain=[cluster]"]), base=folder)
    asked = resolve_paths(load_config("tiny", [*names, "judge.chain=[openai]"]), base=folder)
    assert served.judge.llm.model == str(folder / "my model")
    assert asked.judge.llm.model == "my model"


def test_settings_that_are_empty_stay_empty(tmp_path):
    config = resolve_paths(load_config("tiny", ["judge.cache="]), base=tmp_path)
    assert (config.judge.cache, config.judge.llm.api_key_file) == ("", "")


def test_a_home_that_is_not_known_is_named():
    with pytest.raises(ValueError, match="~nobody-here/runs"):
        resolve_paths(load_config("tiny", ["run.dir=~nobody-here/runs"]))


@pytest.mark.parametrize(
    ("folder", "end"), [("first", "; did you mean runs/first?"), ("second", ""), ("here", ""), ("/first", "")]
)
def test_a_run_that_is_named_without_its_folder_is_suggested(tmp_path, monkeypatch, folder, end):
    monkeypatch.chdir(tmp_path)
    for there in ("runs/first", "runs/here", "here"):
        (tmp_path / there).mkdir(parents=True)
    assert maybe_meant(Path(folder)) == end
