"""What Ray's autoscaler v2 does with a rendered cluster when a run asks for its members. Its scheduler is pure."""

import math
from collections import Counter
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay import autoscaling_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.common_pb2 import LABEL_OPERATOR_IN

from cluster.manifests.kuberay import ROLE
from cluster.manifests.members import teams
from cluster.manifests.render import plan_for, render
from cluster.runtime.placement import Resources, place
from configs.schema import Config
from tests.cluster.manifests.cases import CASES, request


def launched(config: Config, wanted: list[Resources], *, role: str | None = None) -> tuple[Counter[str], list[Any]]:
    """Nodes that the autoscaler starts by group, from nothing, and what it cannot place.

    Args:
        role: the group that members ask for by its label.
    """
    asked = request("kuberay", config, from_zero=True)
    *_, cluster = yaml.safe_load_all(render(asked, config, None))
    settings = AutoscalingConfig(autoscaling_config._derive_autoscaling_config_from_ray_cr(cluster))
    shapes = [{"CPU": one.num_cpus, **({"GPU": one.num_gpus} if one.num_gpus else {})} for one in wanted]
    labels = [[(ROLE, LABEL_OPERATOR_IN, [role])]] if role else None
    requests = [ResourceRequestUtil.make(shape, label_selectors=labels) for shape in shapes]
    types = settings.get_node_type_configs()
    types.pop(settings.get_head_node_type())
    reply = ResourceDemandScheduler(None).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=types,
            max_num_nodes=settings.get_max_num_worker_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count(requests),
        )
    )
    found = Counter({one.instance_type: one.count for one in reply.to_launch})
    return found, list(reply.infeasible_resource_requests)


def members(config: Config, *, at_most: bool) -> list[Resources]:
    """What the pending actors of a run reserve, at its smallest or largest size."""
    workers, ranks = config.rollout.workers, config.learner.ranks
    num_workers = workers.maximum if at_most else workers.minimum
    num_ranks = ranks.maximum if at_most else ranks.minimum
    engines = [team for team in teams(config, None) if team.name == "judges"]
    return [
        *[place(config).worker] * num_workers,
        *[place(config).rank] * num_ranks,
        *[team.member.reserved for team in engines for _ in range(team.maximum if at_most else team.minimum)],
    ]


@pytest.mark.parametrize("name", CASES)
def test_all_members_of_the_largest_size_get_nodes(name):
    config = CASES[name]
    found, infeasible = launched(config, members(config, at_most=True))
    assert infeasible == []
    plan = plan_for(request("kuberay", config), config, None)
    for group in plan.groups:
        assert found[group.name] <= group.max_nodes


@pytest.mark.parametrize("name", CASES)
def test_the_smallest_size_needs_no_more_than_the_plan_says(name):
    config = CASES[name]
    found, infeasible = launched(config, members(config, at_most=False))
    assert infeasible == []
    plan = plan_for(request("kuberay", config), config, None)
    assert sum(found.values()) <= sum(group.min_nodes for group in plan.groups)


def test_without_a_run_nothing_starts():
    assert launched(CASES["7b"], []) == (Counter(), [])


def test_a_member_too_many_gets_no_node():
    config = CASES["7b"]
    too_many = [*members(config, at_most=True), place(config).rank]
    _, infeasible = launched(config, too_many)
    assert len(infeasible) == 1
    assert math.isclose(infeasible[0].resources_bundle["GPU"], 1)


def test_a_member_may_ask_for_nodes_of_its_group_by_label():
    config = CASES["tiny"]
    assert launched(config, [place(config).rank], role="learner") == (Counter({"learner": 1}), [])
    assert launched(config, [place(config).rank], role="rollouts") == (Counter({"rollouts": 1}), [])
