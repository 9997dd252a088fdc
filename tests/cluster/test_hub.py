"""Names in a config become paths of this machine, pinned; the command gets a set over HTTP by environment alone."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from actors.data.shapes import write_split
from actors.errors import DataError
from actors.hub import snapshot_of
from cluster.folders import resolve_run
from cluster.hub import fetch_named
from cluster.identity import identify
from configs.load import load_config, to_yaml
from configs.paths import resolve_paths
from tests.fake_hub import fake_hub

ROOT = Path(__file__).resolve().parents[2]
TINY = {file.name: file.read_bytes() for file in (ROOT / "configs" / "tiny").iterdir() if file.is_file()}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    write_split(tmp_path / "train.parquet", num_rows=6, seed=0, split="train")
    shapes = (tmp_path / "train.parquet").read_bytes()
    with fake_hub() as served:
        served.repo("models", "org/tiny").push(TINY)
        served.repo("datasets", "org/shapes").push({"train.parquet": shapes, "test.parquet": shapes})
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        url = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        yield served


NAMED = ["data.train=hf://org/shapes/train", "data.heldout=hf://org/shapes/test", "model.path=org/tiny"]


def fetched(overrides, earlier=None):
    return fetch_named(resolve_paths(load_config("tiny", overrides)), earlier=earlier, say=lambda _: None)


def test_a_config_with_names_is_saved_with_commits_and_resumed_with_them(hub, tmp_path):
    told = []
    config = fetch_named(resolve_paths(load_config("tiny", [*NAMED, "run.name=a"])), say=told.append)
    commit = snapshot_of(config.model.path).revision
    assert [line.split(": ")[0] for line in told] == ["model.path", "data.train", "data.heldout"]
    assert Path(config.data.train).read_bytes() == (tmp_path / "train.parquet").read_bytes()
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    assert to_yaml(config).count("/snapshots/") == 3
    hub.repo("models", "org/tiny").push({**TINY, "generation_config.json": b"{}"})
    chosen = resolve_run("tiny", [*NAMED, "run.name=a"])  # the same command again
    resumed = fetch_named(chosen.config, earlier=chosen.earlier, say=told.append)
    assert snapshot_of(resumed.model.path).revision == commit
    assert snapshot_of(fetched(NAMED).model.path).revision != commit, "another run takes the newest"


def test_the_commit_is_part_of_the_identity(hub):
    class Rows:
        def identity(self):
            return "d"

    config = fetched(NAMED)
    found = identify(config, Rows()).revisions
    assert found["model"] == f"org/tiny@{snapshot_of(config.model.path).revision}"
    assert found["data"].startswith("org/shapes@")
    assert identify(resolve_paths(load_config("tiny")), Rows()).revisions == {}


def test_only_what_a_command_needs_is_downloaded(hub):
    config = fetch_named(resolve_paths(load_config("tiny", NAMED)), keys=("model.path",), say=lambda _: None)
    assert snapshot_of(config.model.path)
    assert config.data.train == "hf://org/shapes/train"
    assert not any("shapes" in request for request in hub.requests)


def test_a_path_stays_and_what_is_missing_names_its_setting(hub, tmp_path):
    local = fetched(["data.train=train.parquet", "data.heldout=train.parquet"])
    assert local.data.train == str(tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"model.path='org/none': org/none is no model that you can read at http"):
        fetched(["model.path=org/none"])
    with pytest.raises(
        DataError, match=r"data.train='hf://org/shapes': .*several splits.*hf://org/shapes/train.parquet"
    ):
        fetched(["data.train=hf://org/shapes"])


def test_a_saved_config_goes_on_on_another_machine(hub, tmp_path, monkeypatch):
    config = fetched(NAMED)
    (tmp_path / "cache").rename(tmp_path / "gone")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "here"))
    there = fetch_named(dataclasses.replace(config), say=lambda _: None)
    assert there.model.path == config.model.path.replace("/cache/", "/here/")
    assert Path(there.data.heldout).is_file()


def test_data_get_over_http_and_then_offline(hub, tmp_path):
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}

    def get(**more):
        command = [sys.executable, "-m", "cluster.cli", "data", "get", "org/shapes/train", "--json"]
        return subprocess.run(command, env=env | more, capture_output=True, text=True, timeout=60, check=False)

    done = get()
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["rows"], Path(found["path"]).name) == (6, "train.parquet")
    assert found["columns"][:2] == ["problem", "images"]
    assert found["revision"] in found["path"]
    num_requests = len(hub.requests)
    assert json.loads(get(HF_HUB_OFFLINE="1").stdout) == found
    assert len(hub.requests) == num_requests


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.path", "hf://datasets/org/shapes"),
        ("model.path", "hf://a b/c"),
        ("data.train", "hf://org"),
        ("data.heldout", "hf://org/shapes@"),
    ],
)
def test_a_malformed_name_is_told_with_its_setting(key, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^{key}='{value}' is invalid: "):
        fetched([f"{key}={value}"])
