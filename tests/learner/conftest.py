import pytest


@pytest.fixture(autouse=True)
def frees_memory(monkeypatch):
    """Ranks in this process must not keep the memory they free: later tests fork it."""
    monkeypatch.setattr("learner.worker.disable_malloc_trim", lambda: None)
