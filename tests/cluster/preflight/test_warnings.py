"""What a run's user is told before it starts."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.preflight import warnings
from cluster.preflight.warnings import coordinates_warning, host_memory_warning, run_warnings
from configs.load import load_config
from configs.paths import ROOT, resolve_paths
from learner.memory import GIB


def on_machine(monkeypatch, gib, *, address="local"):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(warnings.psutil, "virtual_memory", lambda: SimpleNamespace(total=gib * GIB))


@pytest.fixture
def config():
    return resolve_paths(load_config("tiny"))


def test_a_small_machine_is_told_with_both_figures_and_the_remedy(config, monkeypatch):
    on_machine(monkeypatch, 2)
    warning = host_memory_warning(config)
    assert "this machine has 2" in warning
    assert "learner.copy_state=false" in warning


def test_nothing_is_said_of_a_machine_that_holds_the_run(config, monkeypatch):
    on_machine(monkeypatch, 64)
    assert host_memory_warning(config) is None


def test_nothing_is_known_of_the_machines_of_a_cluster(config, monkeypatch):
    on_machine(monkeypatch, 2, address="10.0.0.1:6379")
    assert host_memory_warning(config) is None


@pytest.mark.parametrize(("model_type", "taught"), [("qwen2_5_vl", "absolute"), ("qwen3_vl", "relative")])
def test_boxes_in_other_coordinates_than_a_model_was_taught_are_told(model_type, taught, tmp_path, monkeypatch):
    on_machine(monkeypatch, 64)
    model = Path(shutil.copytree(ROOT / "configs" / "tiny", tmp_path / "model"))
    content = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(content | {"model_type": model_type}))

    def warned(coordinates, *overrides):
        settings = [f"model.path={model}", f"rollout.tools.coordinates={coordinates}", *overrides]
        return coordinates_warning(load_config("tiny", settings))

    crops = "rollout.tools.names=request_local_region"
    other = {"absolute": "relative", "relative": "absolute"}[taught]
    assert warned(taught, crops) is None
    assert warned(other) is None, "no tool takes a box"
    told = warned(other, crops)
    assert f"rollout.tools.coordinates={other}" in told
    assert f"set it to {taught}" in told


def test_all_are_told(monkeypatch):
    on_machine(monkeypatch, 2)
    config = load_config("tiny", ["rollout.tools.names=request_local_region", "rollout.tools.coordinates=relative"])
    first, second = run_warnings(resolve_paths(config))
    assert "host memory" in first
    assert "coordinates" in second
