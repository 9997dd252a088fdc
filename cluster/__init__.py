"""Everything that uses Ray. Some of Ray's settings are read at import time, so they are set here, before it."""

import os
import sys

from cluster.runtime.addresses import LOOPBACK, bypass_proxies

# All nodes have this process's environment: without the first, a driver under `uv run` would ship a copy of this folder
# to its own workers, without the data and runs that git ignores, and build an environment for each of them.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# A call to Ray outside of a run is a bug: it must not silently start a second cluster.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
# A group that fails leaves two references to its error, and one is read: Ray would print a traceback for the other.
os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
# Ray starts its processes by fork and exec. While a thread is in gRPC, as those of Serve's and Ray's clients often are,
# gRPC's own handlers for forks let a fifth of them die of SIGABRT or SIGSEGV before they have begun. No fork of ours
# calls gRPC.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# Container images often disable bytecode files. A run starts a dozen processes that import the same libraries: each
# would compile them again, which costs a second or more per judge, instead of once.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Loopback must bypass proxies: Ray's dashboard, Serve and local endpoints are called by libraries that would use
# HTTP_PROXY.
os.environ.update(bypass_proxies(os.environ, LOOPBACK))
