from collections.abc import Iterator

import pytest

import cluster  # noqa: F401 (what has to be settled before Ray is imported)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[object]:
    """One small Ray for all tests of a module."""
    from tests.local_ray import ray_on_this_machine  # only where a test wants it: this process is forked while small

    with ray_on_this_machine() as context:
        yield context


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Two processes share the tests by file; one of them takes all that need Ray, a GPU or minutes, in sequence.

    Tests that start Ray come first: it forks its process, which has to be small for that.
    """
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)
    for item in items:
        needs_the_machine = any(item.get_closest_marker(name) for name in ("ray", "gpu", "slow"))
        item.add_marker(pytest.mark.xdist_group("machine" if needs_the_machine else str(item.path)))
