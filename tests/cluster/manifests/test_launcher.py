"""Files for Ray's cluster launcher, by the checks that `ray up` makes."""

from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.manifests.launcher import TOKEN
from cluster.manifests.render import plan_for, render
from tests.cluster.manifests.cases import CASES, request

KINDS = pytest.mark.parametrize("kind", ["aws", "gcp"])
NAMES = pytest.mark.parametrize("name", CASES)


def file(kind: str, name: str, **settings: Any) -> dict[str, Any]:
    config = CASES[name]
    content = yaml.safe_load(render(request(kind, config, **settings), config, None))
    assert isinstance(content, dict)
    return content


@NAMES
@KINDS
def test_ray_accepts_the_file(kind, name):
    validate_config(prepare_config(file(kind, name)))


def test_ray_would_not_accept_a_wrong_word():
    content = file("aws", "tiny")
    content["available_node_types"]["rollouts"]["max_wokers"] = 3
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(content))


@NAMES
@KINDS
def test_nodes_are_those_of_the_plan(kind, name):
    config = CASES[name]
    plan, content = plan_for(request(kind, config), config, None), file(kind, name)
    types = content["available_node_types"]
    assert types[content["head_node_type"]]["resources"]["CPU"] == 0
    for group in plan.groups:
        found = types[group.name]
        assert (found["min_workers"], found["max_workers"]) == (group.min_nodes, group.max_nodes)
        assert found["resources"] == {"CPU": group.node.ray_cpus, "GPU": group.node.num_gpus}
        assert group.node.machine in found["node_config"].values()
    assert content["max_workers"] == sum(group.max_nodes for group in plan.groups)


@NAMES
@KINDS
def test_a_token_is_wanted_and_the_dashboard_is_on_loopback(kind, name):
    content = file(kind, name)
    assert content["file_mounts"][TOKEN] == "~/.ray/auth_token"
    options = content["docker"]["run_options"]
    assert {"--env=RAY_AUTH_MODE=token", f"--env=RAY_AUTH_TOKEN_PATH={TOKEN}", "--user=1000:1000"} <= set(options)
    assert "--dashboard-host=127.0.0.1" in content["head_start_ray_commands"][1]


@KINDS
def test_the_storage_is_mounted_on_the_machine_and_in_the_container(kind):
    content = file(kind, "7b", mount="/shared", nfs="host:/export")
    assert "host:/export /shared" in content["initialization_commands"][-1]
    assert "--volume=/shared:/shared" in content["docker"]["run_options"]


@KINDS
def test_the_judges_key_is_copied_from_a_file(kind):
    assert file(kind, "7b")["file_mounts"]["/home/visionthink/secrets/judge-key"] == "./judge.key"
    assert file(kind, "tiny")["file_mounts"].keys() == {TOKEN}


def test_what_may_be_lost_runs_on_spot_machines():
    types = file("aws", "7b-gpu-judges", spot=True)["available_node_types"]
    on_spot = {name for name, node in types.items() if "InstanceMarketOptions" in node["node_config"]}
    assert on_spot == {"rollouts", "judges"}
    types = file("gcp", "7b-gpu-judges", spot=True)["available_node_types"]
    settings = {name: node["node_config"].get("scheduling", []) for name, node in types.items()}
    assert {name for name, found in settings.items() if {"preemptible": True} in found} == {"rollouts", "judges"}
    assert {"onHostMaintenance": "TERMINATE"} in settings["learner"]


@pytest.mark.parametrize(("setting", "named"), [({"nfs": ""}, "--nfs"), ({"project": ""}, "--project")])
def test_what_a_cloud_needs_is_asked_for(setting, named):
    with pytest.raises(ValueError, match=named):
        file("gcp", "tiny", **setting)
