"""The rules that KubeRay 1.7 enforces on RayCluster and RayJob beyond their schemas, as far as our manifests go.

Its operator rejects what breaks one, after `kubectl apply` has accepted it.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LABEL_KEY = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
MAX_CLUSTER_NAME, MAX_JOB_NAME = 53, 47
RESOURCE_PARAMS = ("num-cpus", "num-gpus", "memory", "resources")
AUTOSCALER_V2 = "RAY_enable_autoscaler_v2"


def problems(manifest: Mapping[str, Any]) -> list[str]:
    kind, name = manifest["kind"], manifest["metadata"]["name"]
    longest = MAX_JOB_NAME if kind == "RayJob" else MAX_CLUSTER_NAME
    found = [] if DNS_1035.fullmatch(name) else [f"name {name!r} is no DNS-1035 label"]
    found += [f"name is longer than {longest}"] if len(name) > longest else []
    annotations = manifest["metadata"].get("annotations", {})
    if kind == "RayJob":
        found += _job(manifest["spec"])
        spec = manifest["spec"].get("rayClusterSpec")
    else:
        spec = manifest["spec"]
    return [*found, *(_cluster(spec, annotations) if spec else [])]


def _job(spec: Mapping[str, Any]) -> Iterator[str]:
    mode, shuts_down = spec.get("submissionMode", "K8sJobMode"), spec.get("shutdownAfterJobFinishes", False)
    if mode not in ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"):
        yield f"unknown submissionMode {mode}"
    if spec.get("suspend") and not shuts_down:
        yield "suspend without shutdownAfterJobFinishes"
    if spec.get("ttlSecondsAfterFinished", 0) < 0:
        yield "negative ttlSecondsAfterFinished"
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not shuts_down:
        yield "ttlSecondsAfterFinished without shutdownAfterJobFinishes"
    if spec.get("deletionStrategy", {}).get("deletionRules") and shuts_down:
        yield "deletionRules beside shutdownAfterJobFinishes"
    if not spec.get("rayClusterSpec") and not spec.get("clusterSelector"):
        yield "neither rayClusterSpec nor clusterSelector"
    if spec.get("backoffLimit", 0) < 0:
        yield "negative backoffLimit"
    if spec.get("backoffLimit", 0) > 0 and (mode == "InteractiveMode" or spec.get("clusterSelector")):
        yield "backoffLimit with InteractiveMode or clusterSelector"
    if mode == "SidecarMode":
        if spec.get("submitterPodTemplate") or spec.get("submitterConfig") or spec.get("clusterSelector"):
            yield "SidecarMode with a submitter or clusterSelector"
        head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        if head.get("restartPolicy", "Never") != "Never":
            yield "SidecarMode wants restartPolicy Never for the head"
    for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(name, 1) <= 0:
            yield f"{name} must be above 0"
    if (spec.get("rayClusterSpec") or {}).get("authOptions", {}).get("enableK8sTokenAuth"):
        yield "a RayJob has no Kubernetes tokens"
    if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict):
        yield "runtimeEnvYAML is no mapping"


def _cluster(spec: Mapping[str, Any], annotations: Mapping[str, str]) -> Iterator[str]:
    head, workers = spec["headGroupSpec"], spec.get("workerGroupSpecs", [])
    scales = spec.get("enableInTreeAutoscaling", False)
    options = spec.get("autoscalerOptions", {})
    is_v2 = options.get("version") == "v2"
    yield from _group("head", head)
    names = [group["groupName"] for group in workers]
    if len(set(names)) != len(names):
        yield "two worker groups of one name"
    for group in workers:
        yield from _group(group["groupName"], group)
        yield from _worker(group, scales=scales, is_v2=is_v2, ray_version=spec.get("rayVersion", ""))
    head_env = {entry["name"] for entry in head["template"]["spec"]["containers"][0].get("env", [])}
    if scales and is_v2:
        for group in (head, *workers):
            if group["template"]["spec"].get("restartPolicy", "Never") != "Never":
                yield "autoscaler v2 wants restartPolicy Never"
    if AUTOSCALER_V2 in head_env and (options.get("version") or not scales):
        yield f"{AUTOSCALER_V2} beside autoscalerOptions.version, or without an autoscaler"
    if options.get("idleTimeoutSeconds", 0) < 0:
        yield "negative idleTimeoutSeconds"
    if any(entry["name"] == "KUBERAY_GEN_AUTOSCALER_START_CMD" for entry in options.get("env", [])):
        yield "KUBERAY_GEN_AUTOSCALER_START_CMD is KubeRay's"
    yield from _fault_tolerance(spec, head_env, annotations)
    yield from _authentication(spec)


def _group(name: str, group: Mapping[str, Any]) -> Iterator[str]:
    if not group["template"]["spec"].get("containers"):
        yield f"{name} has no container"
    params = group.get("rayStartParams", {})
    if group.get("resources") and any(params.get(key) for key in RESOURCE_PARAMS):
        yield f"{name} has resources and rayStartParams"
    if "labels" in params:
        yield f"{name} has labels in rayStartParams"
    if not all(isinstance(value, str) for value in params.values()):
        yield f"{name} has a rayStartParam that is no text"
    for key, value in group.get("labels", {}).items():
        if not LABEL_KEY.fullmatch(key) or not LABEL_VALUE.fullmatch(value):
            yield f"{name} has an invalid label {key}={value}"


def _worker(group: Mapping[str, Any], *, scales: bool, is_v2: bool, ray_version: str) -> Iterator[str]:
    low, high = group.get("minReplicas"), group.get("maxReplicas")
    if not scales and (low is None or high is None):
        yield "a group of a fixed cluster needs minReplicas and maxReplicas"
    if (low or 0) < 0 or (high or 0) < 0:
        yield "negative replicas"
    if low is not None and high is not None and low > high:
        yield "minReplicas above maxReplicas"
    if group.get("numOfHosts", 1) < 1:
        yield "numOfHosts below 1"
    if group.get("suspend") and scales:
        yield "a suspended group beside an autoscaler"
    if "idleTimeoutSeconds" in group and (not is_v2 or group["idleTimeoutSeconds"] < 0):
        yield "a group's idleTimeoutSeconds wants autoscaler v2"
    if group.get("priority") and (not is_v2 or _version(ray_version) < (2, 56)):
        yield "priority wants autoscaler v2 and Ray 2.56"


def _fault_tolerance(spec: Mapping[str, Any], head_env: set[str], annotations: Mapping[str, str]) -> Iterator[str]:
    options, params = spec.get("gcsFaultToleranceOptions"), spec["headGroupSpec"].get("rayStartParams", {})
    if options is None:
        if "RAY_REDIS_ADDRESS" in head_env and annotations.get("ray.io/ft-enabled") != "true":
            yield "RAY_REDIS_ADDRESS without gcsFaultToleranceOptions"
    else:
        if annotations.get("ray.io/ft-enabled") or annotations.get("ray.io/external-storage-namespace"):
            yield "annotations of fault tolerance beside its options"
        if {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD"} & head_env or params.get("redis-password"):
            yield "Redis settings beside gcsFaultToleranceOptions"
        redis = {"redisAddress", "redisUsername", "redisPassword", "externalStorageNamespace"} & options.keys()
        if options.get("backend") == "rocksdb" and redis:
            yield "RocksDB with Redis settings"
        if options.get("backend") != "rocksdb" and "storage" in options:
            yield "storage without RocksDB"
    if params.get("redis-username") or "REDIS_USERNAME" in head_env:
        yield "a Redis user outside gcsFaultToleranceOptions"


def _authentication(spec: Mapping[str, Any]) -> Iterator[str]:
    options = spec.get("authOptions", {})
    if options.get("mode") == "token":
        if _version(spec.get("rayVersion", "")) < (2, 52):
            yield "tokens want rayVersion 2.52 or later"
        if options.get("enableK8sTokenAuth") and options.get("secretName"):
            yield "Kubernetes tokens beside secretName"
    elif options.get("enableK8sTokenAuth"):
        yield "Kubernetes tokens without mode token"


def _version(text: str) -> tuple[int, ...]:
    match = re.match(r"(\d+)\.(\d+)", text)
    return tuple(map(int, match.groups())) if match else (0, 0)
