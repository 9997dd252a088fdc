"""Nodes of Ray's fake provider that unpack the files of a job each in a folder of its own, as machines do.

By default the nodes of one machine share that folder, and one that comes later removes what the others run from.
"""

from __future__ import annotations

import functools
from typing import Any
from unittest import mock

from ray._private.parameter import RayParams
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class OwnFolders(FakeMultiNodeProvider):
    """What the monitor of a growing cluster asks for nodes."""

    def _create_node_with_resources_and_labels(self, *arguments: Any) -> None:
        own = functools.partial(RayParams, runtime_env_dir_name=f"runtime_resources_{self._next_node_id}")
        with mock.patch("ray._private.parameter.RayParams", own):
            super()._create_node_with_resources_and_labels(*arguments)
