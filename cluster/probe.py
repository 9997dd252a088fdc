"""Asks a Ray cluster who it is, in a process of its own: Ray's client waits for minutes and may end its process.

    python -m cluster.probe HOST:PORT

Prints one JSON object: `ray` and `python` (the cluster's versions), or `refused` or `failed` with the reason.
"""

from __future__ import annotations

import json
import signal
import sys

import cluster  # noqa: F401 (what has to be settled before Ray is imported)

ANSWER_S = 4
"""Then this process ends itself by SIGALRM. Imports are not counted: a busy machine is no dead cluster."""
NO_NODE_HERE = "no node of it runs on this machine (`ray start --address=HOST:PORT` makes it one)"


def probe(address: str) -> dict[str, str]:
    import ray
    from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
    from ray._private import services
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
    from ray.exceptions import AuthenticationError, RayError

    signal.alarm(ANSWER_S)
    if "--own" in sys.argv:
        # As Ray does for a cluster that it finds by itself.
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    try:
        found = ray._raylet.GcsClient(address=address).internal_kv_get(CLUSTER_METADATA_KEY, b"cluster", timeout=5)
        metadata = json.loads(found or b"{}")
        if not services.find_node_ids():
            return {"failed": NO_NODE_HERE}
        return {"ray": metadata["ray_version"], "python": metadata["python_version"]}
    except AuthenticationError as error:
        return {"refused": str(error)}
    except (RayError, ConnectionError, RuntimeError, KeyError, ValueError) as error:
        return {"failed": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    print(json.dumps(probe(sys.argv[1])), flush=True)
