import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start Ray come first: it forks this process, which has to be small for that."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)
