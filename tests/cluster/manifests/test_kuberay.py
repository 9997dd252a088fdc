"""RayCluster and RayJob: KubeRay's schemas and rules, the autoscaler's reading of them, Kubernetes' core schemas."""

import functools
import json
import os
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from ray.autoscaler._private.kuberay import autoscaling_config

from cluster.manifests.kuberay import RAY_VERSION
from cluster.manifests.render import plan_for, render
from cluster.manifests.target import Target, on_cluster
from configs.load import load_config
from configs.paths import ROOT
from tests.cluster.manifests.cases import CASES, request
from tests.cluster.manifests.kuberay_rules import problems

SCHEMAS = Path(os.environ.get("VISIONTHINK_SHARED", ROOT.parent / "shared")) / "kuberay"
"""Beside the project's folder, where it is there; KubeRay's schemas are not ours to ship."""
KUBERNETES = "1.34"
KINDS = pytest.mark.parametrize("kind", ["kuberay", "rayjob"])
NAMES = pytest.mark.parametrize("name", CASES)


def documents(kind: str, name: str, **settings: Any) -> dict[str, dict[str, Any]]:
    config = CASES[name]
    return {one["kind"]: one for one in yaml.safe_load_all(render(request(kind, config, **settings), config, None))}


def resource(kind: str, name: str, **settings: Any) -> dict[str, Any]:
    return documents(kind, name, **settings)["RayJob" if kind == "rayjob" else "RayCluster"]


def cluster_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"].get("rayClusterSpec", manifest["spec"])


def groups(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    spec = cluster_spec(manifest)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def pods(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from (group["template"]["spec"] for group in groups(manifest))
    if "submitterPodTemplate" in manifest["spec"]:
        yield manifest["spec"]["submitterPodTemplate"]["spec"]


@NAMES
@KINDS
def test_fits_the_schema_of_kuberay(kind, name):
    manifest = resource(kind, name, queue="training")
    file = SCHEMAS / f"{manifest['kind']}.v1.schema.json"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    assert list(validator(file).iter_errors(manifest)) == []


@functools.cache
def validator(file: Path) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(file.read_text()))


@NAMES
@KINDS
def test_keeps_the_rules_that_kuberay_enforces(kind, name):
    assert problems(resource(kind, name)) == []


@NAMES
@KINDS
def test_core_kinds_and_pods_fit_kubernetes(kind, name):
    found = documents(kind, name, storage_class="shared")
    manifest = found.pop("RayJob" if kind == "rayjob" else "RayCluster")
    assert found.keys() == {"PersistentVolumeClaim", "ConfigMap", "NetworkPolicy"}
    for one in found.values():
        kubernetes_validate.validate(one, KUBERNETES, strict=True)
    for spec in pods(manifest):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@NAMES
def test_the_autoscaler_reads_the_numbers_of_the_plan(name):
    """By the function with which the autoscaler in the head's pod reads a RayCluster."""
    config = CASES[name]
    plan = plan_for(request("kuberay", config), config, None)
    read = autoscaling_config._derive_autoscaling_config_from_ray_cr(resource("kuberay", name))
    types = read["available_node_types"]
    assert types[read["head_node_type"]]["resources"]["CPU"] == 0
    for group in plan.groups:
        found = types[group.name]
        assert (found["min_workers"], found["max_workers"]) == (group.min_nodes, group.max_nodes)
        assert found["resources"]["CPU"] == group.node.ray_cpus
        assert found["resources"].get("GPU", 0) == group.node.num_gpus
        assert found["resources"]["memory"] == group.node.memory_gib * 2**30
        assert found["labels"] == {"visionthink.role": group.name}


@NAMES
@KINDS
def test_pods_have_no_root_no_rights_and_memory_that_is_theirs(kind, name):
    for spec in pods(resource(kind, name)):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["restartPolicy"] == "Never"
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            assert {key: requests[key] for key in limits} == limits
            assert "memory" in limits
            assert "livenessProbe" not in container, "KubeRay adds its own"


@NAMES
@KINDS
def test_the_dashboard_is_inside_the_cluster_and_wants_a_token(kind, name):
    spec = cluster_spec(resource(kind, name))
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert "enableIngress" not in spec["headGroupSpec"]


def test_only_own_pods_the_operator_and_metrics_pass_the_network_policy():
    found = documents("kuberay", "tiny")
    policy = found["NetworkPolicy"]["spec"]
    labels = policy["podSelector"]["matchLabels"]
    for group in groups(found["RayCluster"]):
        assert labels.items() <= group["template"]["metadata"]["labels"].items()
    job = resource("rayjob", "tiny")["spec"]["submitterPodTemplate"]
    assert labels.items() <= job["metadata"]["labels"].items()
    everything, metrics = policy["ingress"]
    assert len(everything["from"]) == 2
    assert metrics["ports"] == [{"protocol": "TCP", "port": 8080}]


def test_pods_end_no_sooner_than_the_run_has_saved():
    config = load_config("tiny", ["run.stop_grace_s=200.5"])
    *_, cluster = yaml.safe_load_all(render(request("kuberay", config), config, None))
    for spec in pods(cluster):
        assert spec["terminationGracePeriodSeconds"] == 231


def test_runs_lie_on_the_shared_storage(tmp_path):
    for name, config in CASES.items():
        found = documents("rayjob", name, mount="/shared/vt")
        file = tmp_path / f"{name}.yaml"
        file.write_text(found["ConfigMap"]["data"]["config.yaml"])
        there = load_config(str(file))
        assert there == on_cluster(config, request("rayjob", config, mount="/shared/vt").target)
        assert there.run.dir == "/shared/vt/runs"
        claim = found["PersistentVolumeClaim"]["metadata"]["name"]
        for group in groups(found["RayJob"]):
            spec = group["template"]["spec"]
            volume = next(v["name"] for v in spec["volumes"] if "persistentVolumeClaim" in v)
            assert {"name": volume, "mountPath": "/shared/vt"} in spec["containers"][0]["volumeMounts"]
            assert {"claimName": claim} in [v.get("persistentVolumeClaim") for v in spec["volumes"]]


def test_an_existing_claim_is_used_and_none_made():
    found = documents("kuberay", "tiny", claim="ours")
    assert "PersistentVolumeClaim" not in found
    for group in groups(found["RayCluster"]):
        claims = [v.get("persistentVolumeClaim") for v in group["template"]["spec"]["volumes"]]
        assert {"claimName": "ours"} in claims


def test_the_judges_key_is_a_file_of_a_secret_on_every_node():
    found = documents("rayjob", "tiny-judge-key", secret="keys")
    llm = yaml.safe_load(found["ConfigMap"]["data"]["config.yaml"])["judge"]["llm"]
    for group in groups(found["RayJob"]):
        spec = group["template"]["spec"]
        (secret,) = [v for v in spec["volumes"] if "secret" in v]
        assert secret["secret"]["secretName"] == "keys"
        (item,) = secret["secret"]["items"]
        (mount,) = [m for m in spec["containers"][0]["volumeMounts"] if m["name"] == secret["name"]]
        assert llm["api_key_file"] == f"{mount['mountPath']}/{item['path']}"
    assert not any("secret" in v for v in groups(resource("rayjob", "tiny"))[0]["template"]["spec"]["volumes"])


def test_a_key_in_the_environment_becomes_the_same_file():
    assert CASES["7b"].judge.llm.api_key_env
    llm = yaml.safe_load(documents("rayjob", "7b")["ConfigMap"]["data"]["config.yaml"])["judge"]["llm"]
    assert "api_key_env" not in llm
    assert llm["api_key_file"].endswith("/judge-key")


def test_a_job_starts_or_resumes_its_run_by_name_and_cleans_up():
    spec = resource("rayjob", "7b", retries=5)["spec"]
    assert spec["entrypoint"].startswith("visionthink train --config /etc/visionthink/config/config.yaml")
    assert spec["entrypoint"].endswith("run.name=7B")
    assert (spec["backoffLimit"], spec["shutdownAfterJobFinishes"]) == (5, True)


def test_a_queue_gets_its_label_and_is_told_that_the_job_is_elastic():
    metadata = resource("rayjob", "tiny", queue="training")["metadata"]
    assert metadata["labels"]["kueue.x-k8s.io/queue-name"] == "training"
    assert metadata["annotations"] == {"kueue.x-k8s.io/elastic-job": "true"}
    assert "annotations" not in resource("rayjob", "tiny")["metadata"]


def test_a_standing_cluster_may_have_no_standing_nodes():
    workers = cluster_spec(resource("kuberay", "7b", from_zero=True))["workerGroupSpecs"]
    assert [(group["minReplicas"], group["replicas"], group["maxReplicas"]) for group in workers] == [(0, 0, 2)] * 2


def test_the_ray_version_is_the_installed_one():
    assert ray.__version__.split(".")[:2] == RAY_VERSION.split(".")[:2]


def test_a_run_folder_off_the_shared_storage_is_refused():
    config = load_config("tiny", ["run.dir=/scratch/runs"])
    with pytest.raises(ValueError, match=r"run.dir='/scratch/runs' .* below --mount=/mnt/visionthink"):
        on_cluster(config, Target(name="x", image="x"))
    on_cluster(config, Target(name="x", image="x", mount="/scratch"))


BROKEN = {
    "name": (["metadata", "name"], "Upper"),
    "long name": (["metadata", "name"], "a" * 60),
    "restart": (["spec", "headGroupSpec", "template", "spec", "restartPolicy"], "Always"),
    "no container": (["spec", "workerGroupSpecs", 0, "template", "spec", "containers"], []),
    "same group": (["spec", "workerGroupSpecs", 0, "groupName"], "learner"),
    "minimum": (["spec", "workerGroupSpecs", 0, "minReplicas"], 9),
    "negative": (["spec", "workerGroupSpecs", 0, "minReplicas"], -1),
    "resources": (["spec", "workerGroupSpecs", 0, "resources"], {"CPU": "1"}),
    "suspended": (["spec", "workerGroupSpecs", 0, "suspend"], True),
    "label": (["spec", "workerGroupSpecs", 0, "labels"], {"a b": "c"}),
    "v2 twice": (
        ["spec", "headGroupSpec", "template", "spec", "containers", 0, "env"],
        [{"name": "RAY_enable_autoscaler_v2", "value": "1"}],
    ),
    "version": (["spec", "rayVersion"], "2.50.0"),
    "redis": (["spec", "headGroupSpec", "rayStartParams", "redis-username"], "x"),
    "storage": (["spec", "gcsFaultToleranceOptions"], {"storage": {"size": "1Gi"}}),
}


@pytest.mark.parametrize("case", BROKEN)
def test_the_rules_find_what_kuberay_would_reject(case):
    path, value = BROKEN[case]
    manifest = deepcopy(resource("kuberay", "tiny"))
    at: Any = manifest
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    assert len(problems(manifest)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"submissionMode": "SidecarMode"},
        {"submissionMode": "InteractiveMode"},
        {"submissionMode": "Other"},
        {"shutdownAfterJobFinishes": False},
        {"deletionStrategy": {"deletionRules": [{}]}},
        {"backoffLimit": -1},
        {"activeDeadlineSeconds": 0},
        {"runtimeEnvYAML": "text"},
        {"rayClusterSpec": None, "backoffLimit": 0},
    ],
    ids=str,
)
def test_the_rules_find_what_kuberay_would_reject_of_a_job(change):
    manifest = deepcopy(resource("rayjob", "tiny"))
    manifest["spec"] |= change
    assert len(problems(manifest)) == 1
