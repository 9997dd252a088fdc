"""Files for Ray's cluster launcher (`ray up`) on AWS and GCP. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster.manifests.kuberay import ROLE
from cluster.manifests.plan import Machine, Node, Plan
from cluster.manifests.pods import UID
from cluster.manifests.target import HOME, JUDGE_KEY, SECRET_FOLDER, Target, needs_key
from configs.judges import JudgeConfig
from configs.require import require

TOKEN = f"{HOME}/.ray/auth_token"
HEAD = "head"
IDLE_MINUTES = 5
DISK_GIB = 300
"""The image, logs and what the object store spills."""
GPU_SHM_GIB, SHM_GIB = 64, 4
"""/dev/shm of the container: object store, weights, vLLM's queues."""

AWS = (
    *(
        Machine(name=f"m7i.{size}", num_cpus=cpus, num_gpus=0, memory_gib=4 * cpus)
        for size, cpus in (
            ("large", 2),
            ("xlarge", 4),
            ("2xlarge", 8),
            ("4xlarge", 16),
            ("8xlarge", 32),
            ("12xlarge", 48),
            ("16xlarge", 64),
            ("24xlarge", 96),
            ("48xlarge", 192),
        )
    ),
    Machine(name="p5.4xlarge", num_cpus=16, num_gpus=1, memory_gib=256),
    Machine(name="p4de.24xlarge", num_cpus=96, num_gpus=8, memory_gib=1152),
    Machine(name="p5.48xlarge", num_cpus=192, num_gpus=8, memory_gib=2048),
)
"""With GPUs of 80 GB: H100 (p5), A100 (p4de)."""
GCP = (
    *(
        Machine(name=f"n2-standard-{cpus}", num_cpus=cpus, num_gpus=0, memory_gib=4 * cpus)
        for cpus in (2, 4, 8, 16, 32, 48, 64, 80, 96, 128)
    ),
    *(
        Machine(name=f"a2-ultragpu-{gpus}g", num_cpus=12 * gpus, num_gpus=gpus, memory_gib=170 * gpus)
        for gpus in (1, 2, 4, 8)
    ),
    *(
        Machine(name=f"a3-highgpu-{gpus}g", num_cpus=26 * gpus, num_gpus=gpus, memory_gib=234 * gpus)
        for gpus in (1, 2, 4, 8)
    ),
)
"""With GPUs of 80 GB: A100 (a2-ultragpu), H100 (a3-highgpu)."""


def aws(plan: Plan, judge: JudgeConfig, target: Target) -> dict[str, Any]:
    region = target.region or "us-west-2"
    provider: dict[str, Any] = {"type": "aws", "region": region, "cache_stopped_nodes": False}
    if target.zone:
        provider["availability_zone"] = target.zone
    return _launch(plan, judge, target, provider, _aws_node)


def gcp(plan: Plan, judge: JudgeConfig, target: Target) -> dict[str, Any]:
    require(target.project != "", "--project", target.project, "must name the GCP project")
    region = target.region or "us-central1"
    provider: dict[str, Any] = {
        "type": "gcp",
        "region": region,
        "availability_zone": target.zone or f"{region}-a",
        "project_id": target.project,
    }
    return _launch(plan, judge, target, provider, _gcp_node)


def _aws_node(node: Node, is_spot: bool) -> dict[str, Any]:
    disk = {"VolumeSize": DISK_GIB, "VolumeType": "gp3", "Encrypted": True, "DeleteOnTermination": True}
    found: dict[str, Any] = {
        "InstanceType": node.machine,
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": disk}],
        # Credentials of the machine only with a session token; two hops, as Ray runs in a container.
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2},
    }
    if is_spot:
        found["InstanceMarketOptions"] = {"MarketType": "spot"}
    return found


def _gcp_node(node: Node, is_spot: bool) -> dict[str, Any]:
    family = "common-cu128-ubuntu-2204-nvidia-570" if node.num_gpus else "common-cpu"
    image = f"projects/deeplearning-platform-release/global/images/family/{family}"
    disk = {
        "boot": True,
        "autoDelete": True,
        "type": "PERSISTENT",
        "initializeParams": {"diskSizeGb": DISK_GIB, "sourceImage": image},
    }
    found: dict[str, Any] = {"machineType": node.machine, "disks": [disk]}
    scheduling: list[dict[str, Any]] = []
    if node.num_gpus or is_spot:
        scheduling.append({"onHostMaintenance": "TERMINATE"})
    if is_spot:
        scheduling.append({"preemptible": True})
    if scheduling:
        found["scheduling"] = scheduling
    if node.num_gpus:
        found["metadata"] = {"items": [{"key": "install-nvidia-driver", "value": "True"}]}
    return found


def _launch(
    plan: Plan,
    judge: JudgeConfig,
    target: Target,
    provider: dict[str, Any],
    node_config: Callable[[Node, bool], dict[str, Any]],
) -> dict[str, Any]:
    require(":/" in target.nfs, "--nfs", target.nfs, "must be HOST:/PATH of the storage for models, data and runs")
    types = {HEAD: _node_type(plan.head, node_config(plan.head, False), 0, 0, "head")}
    for group in plan.groups:
        is_spot = target.spot and group.name in ("rollouts", "judges")
        node = node_config(group.node, is_spot)
        types[group.name] = _node_type(group.node, node, group.min_nodes, group.max_nodes, group.name)
    has_gpus = plan.max_gpus > 0
    key = {f"{SECRET_FOLDER}/{JUDGE_KEY}": "./judge.key"} if needs_key(judge) else {}
    return {
        "cluster_name": target.name,
        "max_workers": sum(group.max_nodes for group in plan.groups),
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": IDLE_MINUTES,
        "docker": {
            "image": target.image,
            "container_name": "visionthink",
            "pull_before_run": True,
            "run_options": _run_options(target, has_gpus=has_gpus),
            "disable_shm_size_detection": True,
        },
        "provider": provider,
        "auth": {"ssh_user": "ubuntu"},
        "available_node_types": types,
        "head_node_type": HEAD,
        # Copied from the machine of whoever runs `ray up`; what they hold is never part of this file.
        "file_mounts": {TOKEN: "~/.ray/auth_token", **key},
        "initialization_commands": _mount_storage(target),
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [
            "ray stop",
            "ulimit -n 65536; ray start --head --port=6379 --dashboard-host=127.0.0.1 "
            "--autoscaling-config=~/ray_bootstrap_config.yaml --disable-usage-stats",
        ],
        "worker_start_ray_commands": [
            "ray stop",
            "ulimit -n 65536; ray start --address=$RAY_HEAD_IP:6379 --disable-usage-stats",
        ],
    }


def _node_type(node: Node, node_config: dict[str, Any], minimum: int, maximum: int, role: str) -> dict[str, Any]:
    return {
        "min_workers": minimum,
        "max_workers": maximum,
        "resources": {"CPU": node.ray_cpus, "GPU": node.num_gpus},
        "labels": {ROLE: role},
        "node_config": node_config,
    }


def _run_options(target: Target, *, has_gpus: bool) -> list[str]:
    return [
        f"--user={UID}:{UID}",
        "--security-opt=no-new-privileges",
        "--cap-drop=ALL",
        "--ulimit=nofile=65536:65536",
        f"--shm-size={GPU_SHM_GIB if has_gpus else SHM_GIB}g",
        f"--volume={target.mount}:{target.mount}",
        "--env=RAY_AUTH_MODE=token",
        f"--env=RAY_AUTH_TOKEN_PATH={TOKEN}",
    ]


def _mount_storage(target: Target) -> list[str]:
    """On the machine, before the container starts."""
    folder, source = target.mount, target.nfs
    return [
        "command -v mount.nfs4 >/dev/null || (sudo apt-get update && sudo apt-get install -y nfs-common)",
        f"sudo mkdir -p {folder}",
        f"mountpoint -q {folder} || sudo mount -t nfs4 -o nfsvers=4.1,hard,noresvport {source} {folder}",
    ]
