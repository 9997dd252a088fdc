"""A run submitted to a cluster without any CPU: nodes come for its workers and ranks, and go when it has ended.

    uv run python -m tests.bench.autoscaling [--png docs/autoscaling.png] [--json]

Ray's autoscaler (v2) is the real one, with Ray's fake node provider: each node is a raylet of this machine. The run is
`visionthink submit` with the tiny model: vLLM, DeepSpeed over gloo, and judges by Ray Serve.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from ray._raylet import GcsClient
from ray.exceptions import RpcError

from actors.data.shapes import make_shapes
from cluster.status.files import read_snapshot
from configs.paths import ROOT
from learner.host import free_port

HEAD_ID = "f" * 51 + "00000"
"""Ray's fake provider numbers its nodes from this one on."""
NUM_STEPS = 3
MOST_NODES = 3
IDLE_S = 10.0
"""A node that nothing runs on is given back after this time."""
WAIT_S = 420.0
SERVICES = {
    "auth": {}, "docker": {}, "initialization_commands": [], "setup_commands": [], "head_setup_commands": [],
    "worker_setup_commands": [], "head_start_ray_commands": [], "worker_start_ray_commands": [], "file_mounts": {},
    "cluster_synced_files": [], "file_mounts_sync_continuously": False, "rsync_exclude": [], "rsync_filter": [],
}  # fmt: skip


def configuration(gcs_address: str) -> dict[str, Any]:
    """Of the autoscaler: a head without a CPU, and nodes with room for two of the run's processes each."""
    return {
        "cluster_name": "fake",
        "max_workers": MOST_NODES,
        "upscaling_speed": 100.0,
        "idle_timeout_minutes": IDLE_S / 60,
        "provider": {
            "type": "external",  # the wheel lacks the defaults of `fake_multinode`
            "module": "tests.bench.growing_nodes.OwnFolders",
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "gcs_address": gcs_address,
            "use_node_id_as_ip": True,  # the nodes share one
            "disable_node_updaters": True,  # nothing is installed over SSH
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "one-cpu": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": MOST_NODES},
        },
        "head_node_type": "ray.head.default",
        **SERVICES,
    }


@contextlib.contextmanager
def growing_cluster() -> Iterator[tuple[str, str]]:
    """Addresses of a head on loopback with an autoscaler, and of its dashboard; all of it is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="vt-", dir="/tmp"))  # short: Ray's sockets are below it
    port, dashboard_port = free_port(), free_port()
    address, dashboard = f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard_port}"
    (folder / "autoscaler.yaml").write_text(json.dumps(configuration(address)))
    environment = {
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        "RAY_AUTH_MODE": "disabled",  # as in this process, which asks the head as well
        "VISIONTHINK_ALLOW_OPEN_CLUSTER": "1",  # which the job's driver inherits
        "RAY_TMPDIR": str(folder),
        "PYTHONPATH": str(ROOT),  # for the autoscaler, which loads the provider
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_NODE_TYPE_NAME": "ray.head.default",  # as `ray up` sets it: it tells a run that the cluster grows
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=0", f"--port={port}",
        "--node-ip-address=127.0.0.1", "--dashboard-agent-listen-port=0", "--include-dashboard=true",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}",
        f"--autoscaling-config={folder / 'autoscaler.yaml'}",
    ]  # fmt: skip
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait_for(lambda: answers(address) and is_open(dashboard_port), 60.0, folder / "head.log")
        yield address, dashboard
    finally:
        end_all(head, folder)
        shutil.rmtree(folder, ignore_errors=True)


def end_all(head: subprocess.Popen[bytes], folder: Path) -> None:
    """Kill the head and whatever else of it is below that folder: the nodes are no children of its."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(head.pid, signal.SIGKILL)
    head.wait()
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in part for part in process.info["cmdline"] or ()):
            with contextlib.suppress(psutil.Error):
                process.kill()


def answers(address: str) -> bool:
    with contextlib.suppress(RpcError):
        return GcsClient(address=address).check_alive([], timeout=2) is not None
    return False


def is_open(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2):
        return True
    return False


def wait_for(is_so: Callable[[], bool], within_s: float, log: Path) -> None:
    give_up_at = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < give_up_at, log.read_text()[-3000:]
        time.sleep(0.2)


def alive_nodes(gcs: GcsClient) -> list[str]:
    """Ids of the nodes that are up, without the head."""
    found = gcs.get_all_node_info(timeout=5)
    return sorted(info.node_id.hex() for info in found.values() if info.state == 0 and info.node_id.hex() != HEAD_ID)


def played_on(folder: Path) -> dict[str, str]:
    """Member of the run to the node that it is on."""
    try:
        members = read_snapshot(folder).status.members
    except ValueError:
        return {}
    return {member.name: member.node for member in members if member.node}


def measure() -> dict[str, Any]:
    """Start the cluster and the run, and look twice a second until every node has been given back."""
    with growing_cluster() as (address, dashboard), tempfile.TemporaryDirectory() as runs:
        shapes = make_shapes(Path(runs) / "shapes", train_rows=64, heldout_rows=8, seed=3)
        command = [
            sys.executable, "-m", "cluster.cli", "submit", f"--address={dashboard}", "--", "train",
            "run.name=growing", f"run.dir={runs}",
            f"data.train={shapes['train']}", f"data.heldout={shapes['heldout']}", "rollout.num_workers=2",
            f"train.num_steps={NUM_STEPS}", "train.prompts_per_step=8", "learner.prompts_per_mini_batch=4",
            "rollout.group_size=4", "eval.num_samples=8",
        ]  # fmt: skip
        gcs, started = GcsClient(address=address), time.monotonic()
        nodes_at_start = alive_nodes(gcs)
        errors = Path(runs) / "errors.log"
        with errors.open("w") as log:
            environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
            run = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        looks: list[dict[str, Any]] = []
        ended_at = None
        try:
            while ended_at is None or looks[-1]["nodes"]:
                now = time.monotonic() - started
                assert now < WAIT_S, f"{looks[-1]}: {errors.read_text()[-3000:]}"
                if ended_at is None and run.poll() is not None:
                    ended_at = now
                looks.append(
                    {"at_s": round(now, 1), "nodes": alive_nodes(gcs), "members": played_on(Path(runs) / "growing")}
                    if ended_at is None
                    else {"at_s": round(now, 1), "nodes": alive_nodes(gcs), "members": {}}
                )
                time.sleep(0.5)
        finally:
            run.kill()
        assert run.returncode == 0, errors.read_text()[-3000:]
        steps = len((Path(runs) / "growing" / "ledger.jsonl").read_text().splitlines())
    return report(nodes_at_start, looks, ended_at, steps)


def report(nodes_at_start: list[str], looks: list[dict[str, Any]], ended_at: float, steps: int) -> dict[str, Any]:
    return {
        "nodes_at_start": len(nodes_at_start),
        "most_nodes": max(len(look["nodes"]) for look in looks),
        "first_node_s": next(look["at_s"] for look in looks if look["nodes"]),
        "nodes_used": len({node for look in looks for node in look["members"].values()}),
        "roles_placed": sorted({name.rsplit(" ", 1)[0] for look in looks for name in look["members"]}),
        "steps": steps,
        "ended_s": round(ended_at, 1),
        "given_back_s": round(looks[-1]["at_s"] - ended_at, 1),
        "looks": looks,
    }


def draw(found: dict[str, Any], path: Path) -> None:
    """A grey bar for each node while it is up, and in it the members of the run while they have room there."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    looks, colours = found["looks"], {"rollout worker": "tab:blue", "learner rank": "tab:orange"}
    nodes = sorted({node for look in looks for node in look["nodes"]})
    figure = Figure(figsize=(9, 1.7 + 0.9 * len(nodes)), layout="constrained")
    axes = figure.subplots()
    for row, node in enumerate(nodes):
        up = [look["at_s"] for look in looks if node in look["nodes"]]
        axes.barh(row, up[-1] - up[0], left=up[0], height=0.8, color="0.88")
        held = {
            name: [look["at_s"] for look in looks if look["members"].get(name) == node]
            for name in sorted({name for look in looks for name, where in look["members"].items() if where == node})
        }
        for number, (name, times) in enumerate(held.items()):
            where = row + 0.19 - 0.38 * number
            axes.barh(where, times[-1] - times[0], left=times[0], height=0.34, color=colours[name.rsplit(" ", 1)[0]])
            axes.text(times[0], where, f" {name}", va="center", fontsize=8, color="white")
    axes.axvline(found["ended_s"], color="0.3", linestyle="--", linewidth=1)
    axes.text(found["ended_s"], len(nodes) - 0.45, "the job has ended ", fontsize=8, va="center", ha="right")
    axes.set_yticks(range(len(nodes)), [f"node {number + 1}" for number in range(len(nodes))])
    axes.set_ylim(-0.6, len(nodes) - 0.2)
    axes.set_xlim(0, looks[-1]["at_s"] * 1.03)
    axes.set_xlabel("seconds since the job was submitted")
    axes.set_title("A cluster whose head has no CPU: nodes come for a run and go after it", fontsize=10, loc="left")
    handles = [Patch(color="0.88", label="node is up"), *(Patch(color=c, label=name) for name, c in colours.items())]
    figure.legend(handles=handles, ncols=3, loc="outside lower center", fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--png", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure()
    if arguments.png:
        draw(found, arguments.png)
    shown = {name: value for name, value in found.items() if name != "looks"}
    print(json.dumps(found if arguments.json else shown))


if __name__ == "__main__":
    main()
