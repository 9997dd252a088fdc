"""Kubernetes parts that RayCluster and RayJob have in common, as dicts. Pure.

KubeRay adds liveness and readiness probes (an HTTP check of each node's agent since Ray 2.53), /dev/shm, the wait for
the head, and the token of `authOptions`: what it adds is left to it.
"""

from __future__ import annotations

from typing import Any

import yaml

from cluster.manifests.plan import Node
from cluster.manifests.target import JUDGE_KEY, SECRET_FOLDER, Target, changes, grace_s, needs_key, on_cluster
from configs.schema import Config

UID = 1000
"""User and group of the image (cluster/manifests/Dockerfile)."""
CONFIG_FOLDER = "/etc/visionthink/config"
CONFIG_FILE = "config.yaml"
GPU = "nvidia.com/gpu"
METRICS_PORT = 8080
"""Where KubeRay has Ray export its metrics."""


def labels(target: Target) -> dict[str, str]:
    return {"app.kubernetes.io/name": "visionthink", "app.kubernetes.io/instance": target.name}


def metadata(target: Target, suffix: str = "") -> dict[str, Any]:
    return {"name": f"{target.name}{suffix}", "namespace": target.namespace, "labels": labels(target)}


def claim_name(target: Target) -> str:
    return target.claim or f"{target.name}-storage"


def storage_claim(target: Target) -> dict[str, Any]:
    """Storage for models, data and runs that all nodes mount."""
    spec: dict[str, Any] = {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": f"{target.storage_gib}Gi"}},
    }
    if target.storage_class:
        spec["storageClassName"] = target.storage_class
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata(target, "-storage"), "spec": spec}


def config_map(config: Config, target: Target) -> dict[str, Any]:
    """The config of the run, with the paths that it has on the cluster."""
    text = yaml.safe_dump(changes(on_cluster(config, target)), sort_keys=False)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(target, "-config"),
        "data": {CONFIG_FILE: text},
    }


def network_policy(target: Target) -> dict[str, Any]:
    """Only the cluster's own pods and the KubeRay operator reach its ports, and Prometheus the metrics."""
    own = {"podSelector": {"matchLabels": labels(target)}}
    metrics = {"from": [_anywhere("prometheus")], "ports": [{"protocol": "TCP", "port": METRICS_PORT}]}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(target),
        "spec": {
            "podSelector": {"matchLabels": labels(target)},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [own, _anywhere("kuberay-operator")]}, metrics],
        },
    }


def _anywhere(app: str) -> dict[str, Any]:
    """Pods of an application, whatever their namespace."""
    return {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": app}}}


def pod(config: Config, target: Target, container: str, node: Node, *, is_head: bool) -> dict[str, Any]:
    """Template of a Ray pod: no root, no rights, requests of memory and GPUs equal to the limits."""
    volumes = _volumes(config, target)
    limits: dict[str, Any] = {"memory": f"{node.memory_gib}Gi"}
    if node.num_gpus:
        limits[GPU] = str(node.num_gpus)
    ray: dict[str, Any] = {
        "name": container,
        "image": target.image,
        "imagePullPolicy": "IfNotPresent",
        "resources": {"requests": {"cpu": str(node.num_cpus), **limits}, "limits": limits},
        "env": [{"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}, {"name": "PYTHONUNBUFFERED", "value": "1"}],
        "securityContext": container_security(),
        "volumeMounts": [mount for mount, _ in volumes],
    }
    if is_head:
        ports = (("gcs-server", 6379), ("dashboard", 8265), ("client", 10001))
        ray["ports"] = [{"name": name, "containerPort": port} for name, port in ports]
    spec: dict[str, Any] = {
        "restartPolicy": "Never",  # the autoscaler replaces pods
        "terminationGracePeriodSeconds": grace_s(config),
        "enableServiceLinks": False,
        "securityContext": pod_security(),
        "containers": [ray],
        "volumes": [volume for _, volume in volumes],
    }
    if not is_head:
        spec["automountServiceAccountToken"] = False
    if node.num_gpus:
        spec["tolerations"] = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
    return {"metadata": {"labels": labels(target)}, "spec": spec}


def submitter(target: Target) -> dict[str, Any]:
    """Template of the pod that submits the job and follows its log."""
    container = {
        "name": "ray-job-submitter",
        "image": target.image,
        "imagePullPolicy": "IfNotPresent",
        "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}},
        "securityContext": container_security(),
    }
    spec = {
        "restartPolicy": "Never",
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
        "securityContext": pod_security(),
        "containers": [container],
    }
    return {"metadata": {"labels": labels(target)}, "spec": spec}


def pod_security() -> dict[str, Any]:
    return {
        "runAsNonRoot": True,
        "runAsUser": UID,
        "runAsGroup": UID,
        "fsGroup": UID,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> dict[str, Any]:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _volumes(config: Config, target: Target) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Mounts with their volumes. A secret is named, never shown, and mounted as a file."""
    claim = {"name": "storage", "persistentVolumeClaim": {"claimName": claim_name(target)}}
    settings = {"name": "config", "configMap": {"name": f"{target.name}-config"}}
    found: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"name": "storage", "mountPath": target.mount}, claim),
        ({"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True}, settings),
    ]
    if needs_key(config.judge):
        items = [{"key": JUDGE_KEY, "path": JUDGE_KEY}]
        secret = {"secretName": target.secret, "defaultMode": 0o440, "items": items}
        mount = {"name": "secrets", "mountPath": SECRET_FOLDER, "readOnly": True}
        found.append((mount, {"name": "secrets", "secret": secret}))
    return found
