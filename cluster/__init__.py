"""Everything that knows Ray. Some of its settings are read when it is imported, so they are made here, before that."""

import os
import sys

from cluster.addresses import LOOPBACK, bypass_proxies

# All nodes have this process's environment: without the first, a driver under `uv run` would ship a copy of this folder
# to its own workers, without the data and runs that git ignores, and build an environment for each of them.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# A call to Ray outside of a run is a bug: it must not start a second cluster on the quiet.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
# Container images like to forbid compiled modules. A run starts a dozen processes that import the same libraries: each
# would compile them anew, a second or more for every judge that comes up, instead of the first one for all.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Loopback is never reached through a proxy: Ray's dashboard, Serve and local endpoints are asked by libraries that
# would take HTTP_PROXY for it.
os.environ.update(bypass_proxies(os.environ, LOOPBACK))
