"""A small Ray of the test's own process."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import ray
from ray.exceptions import RayActorError
from ray.serve.context import _disconnect, _get_global_client

END_S = 30.0

from cluster.runtime.ray_start import start_ray


@contextmanager
def ray_on_this_machine(**settings: object) -> Iterator[object]:
    """Up in the body, with no Serve left behind. Yields what `ray.init` returns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        context = start_ray(**{"num_cpus": 2, "include_dashboard": False, "log_to_driver": False, **settings})
        try:
            yield context
        finally:
            end_serve()
            ray.shutdown()


def end_serve() -> None:
    """`serve.shutdown` without a line of Ray's: it waits in a call to a controller that ends by being killed, and Ray
    tells of that call that it will be tried again."""
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return
    client.shutdown_cached_handles()
    with suppress(RayActorError):
        ray.get(client._controller.graceful_shutdown.options(max_task_retries=0).remote(), timeout=END_S)
    _disconnect()
