"""A small Ray of the test's own process."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import ray
from ray import serve


@contextmanager
def ray_on_this_machine(**settings: object) -> Iterator[object]:
    """Up in the body, with no Serve left behind. Yields what `ray.init` returns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        context = ray.init(**{"num_cpus": 2, "include_dashboard": False, "log_to_driver": False, **settings})
        try:
            yield context
        finally:
            serve.shutdown()
            ray.shutdown()
