import pytest

from tests.learner.builders import save_model, small_model


@pytest.fixture(autouse=True)
def frees_memory(monkeypatch):
    """Ranks in this process must not keep the memory they free: later tests fork it."""
    monkeypatch.setattr("learner.worker.disable_malloc_trim", lambda: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model."""
    path = tmp_path_factory.mktemp("model")
    save_model(path, small_model())
    return path
