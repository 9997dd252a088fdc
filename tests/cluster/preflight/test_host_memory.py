"""A run that may be killed for its memory is told before it starts."""

from types import SimpleNamespace

import pytest

from cluster.preflight import host_memory
from cluster.preflight.host_memory import host_memory_warning
from configs.load import load_config
from configs.paths import resolve_paths
from learner.memory import GIB


def on_machine(monkeypatch, gib, *, address="local"):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(host_memory.psutil, "virtual_memory", lambda: SimpleNamespace(total=gib * GIB))


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
