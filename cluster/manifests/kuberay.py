"""RayCluster and RayJob for the KubeRay operator, 1.5.1 or later. Pure."""

from __future__ import annotations

import shlex
from typing import Any

from cluster.manifests.plan import Group, Plan
from cluster.manifests.pods import (
    CONFIG_FILE,
    CONFIG_FOLDER,
    config_map,
    container_security,
    metadata,
    network_policy,
    pod,
    storage_claim,
    submitter,
)
from cluster.manifests.target import Target
from configs.schema import Config

RAY_VERSION = "2.60.0"
"""Of the image. KubeRay wants it for token authentication and for its probes."""
ROLE = "visionthink.role"
"""Ray label of a node: the group that it belongs to."""
IDLE_S = 300
"""An idle node is given back after this long."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
ELASTIC = "kueue.x-k8s.io/elastic-job"
"""Without this annotation Kueue refuses a cluster with an autoscaler (feature gate ElasticJobsViaWorkloadSlices)."""
FINISHED_S = 600
"""A RayJob's cluster goes this long after the job's end, so that its logs can be read."""


def ray_cluster(plan: Plan, config: Config, target: Target) -> list[dict[str, Any]]:
    """A standing cluster, to which runs are submitted."""
    cluster = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": _queued(target),
        "spec": cluster_spec(plan, config, target),
    }
    return [*_around(config, target), cluster]


def ray_job(plan: Plan, config: Config, target: Target) -> list[dict[str, Any]]:
    """One run with a cluster of its own. A retry gets a new cluster, and resumes the run by its name."""
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _queued(target),
        "spec": {
            "entrypoint": shlex.join(job_command(config)),
            "submissionMode": "K8sJobMode",
            "backoffLimit": target.retries,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": FINISHED_S,
            "submitterPodTemplate": submitter(target),
            "rayClusterSpec": cluster_spec(plan, config, target),
        },
    }
    return [*_around(config, target), job]


def job_command(config: Config) -> list[str]:
    """Starts the run, or resumes the one of this name."""
    return ["visionthink", "train", "--config", f"{CONFIG_FOLDER}/{CONFIG_FILE}", f"run.name={config.run.name}"]


def cluster_spec(plan: Plan, config: Config, target: Target) -> dict[str, Any]:
    head = {
        "serviceType": "ClusterIP",
        # The dashboard listens inside the cluster only, behind the token and the network policy.
        "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"},
        "template": pod(config, target, "ray-head", plan.head, is_head=True),
    }
    return {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "upscalingMode": "Default",
            "idleTimeoutSeconds": IDLE_S,
            "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}},
            "securityContext": container_security(),
        },
        "headGroupSpec": head,
        "workerGroupSpecs": [_worker_group(group, config, target) for group in plan.groups],
    }


def _worker_group(group: Group, config: Config, target: Target) -> dict[str, Any]:
    node = group.node
    return {
        "groupName": group.name,
        "replicas": group.min_nodes,
        "minReplicas": group.min_nodes,
        "maxReplicas": group.max_nodes,
        "numOfHosts": 1,
        "labels": {ROLE: group.name},
        "rayStartParams": {"num-cpus": str(node.ray_cpus), "num-gpus": str(node.num_gpus)},
        "template": pod(config, target, "ray-worker", node, is_head=False),
    }


def _around(config: Config, target: Target) -> list[dict[str, Any]]:
    claim = [] if target.claim else [storage_claim(target)]
    return [*claim, config_map(config, target), network_policy(target)]


def _queued(target: Target) -> dict[str, Any]:
    found = metadata(target)
    if target.queue:
        found["labels"] = {**found["labels"], QUEUE_LABEL: target.queue}
        found["annotations"] = {ELASTIC: "true"}
    return found
