"""The nodes of a cluster for a config: a pure function. `visionthink cluster plan` and every manifest read it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from actors.errors import RunError
from cluster.manifests.members import (
    Member,
    Team,
    rank_gpu_gib,
    shares_one_gpu,
    teams,
    weight_gib,
)
from configs.schema import Config
from learner.memory import ModelShape

NODE_GIB = 2.0
"""Ray's own processes on a worker node."""
SHARED_ROLE = "shared"
"""The group whose one GPU holds rollouts and learner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The resources of one pod or machine."""

    ray_cpus: int
    """CPUs that Ray may hand out; a head has none, so that no member lands on it."""
    num_cpus: int
    num_gpus: int
    memory_gib: int
    machine: str = ""
    """Machine type of a cloud; empty for a pod."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Equal nodes, which come and go together with the members that they hold."""

    name: str
    members_per_node: int
    node: Node
    min_nodes: int
    max_nodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    head: Node
    groups: tuple[Group, ...]
    notes: tuple[str, ...]
    """What the user should know, one sentence each."""

    @property
    def max_gpus(self) -> int:
        return sum(group.max_nodes * group.node.num_gpus for group in self.groups)

    def from_zero(self) -> Plan:
        """The same cluster without standing nodes: they come when a run asks for them, and go after it."""
        return replace(self, groups=tuple(replace(group, min_nodes=0) for group in self.groups))


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine type of a cloud."""

    name: str
    num_cpus: int
    num_gpus: int
    memory_gib: int


def cluster_plan(
    config: Config, shape: ModelShape | None, *, gpus_per_node: int = 8, machines: Sequence[Machine] = ()
) -> Plan:
    """The nodes that hold a run from its smallest to its largest size.

    A node holds a number of members that divides both sizes, so that no node is needed half: on GPUs as many as fit,
    which keeps ranks on one NVLink domain, on CPU as few as possible.

    Args:
        shape: of the policy; None where its config.json is not at hand, which makes host memory a rough guess.
        gpus_per_node: most GPUs of a node.
        machines: what nodes are chosen from; without any, a node is a pod of exactly the size needed.

    Raises:
        RunError: no machine holds a member.
    """
    found = teams(config, shape)
    extra = NODE_GIB + 2 * weight_gib(config, shape)  # two versions of the weights on their way
    if shares_one_gpu(config):
        found = [_share(found[0], found[1]), *found[2:]]
    slots = max((team.member.memory_gib for team in found if not team.member.reserved.num_gpus), default=0.0)
    groups = [_group(team, extra, slots, gpus_per_node, machines) for team in found]
    return Plan(
        head=_head(config, machines), groups=tuple(groups), notes=tuple(_notes(config, shape, is_cloud=bool(machines)))
    )


def _share(rollouts: Team, learner: Team) -> Team:
    """Everything on one GPU is one member of one node: taken apart, the parts could not pass weights by CUDA IPC."""
    workers, ranks = rollouts.maximum, learner.maximum
    reserved = replace(
        rollouts.member.reserved,
        num_cpus=workers * rollouts.member.reserved.num_cpus + ranks * learner.member.reserved.num_cpus,
        num_gpus=1.0,
    )
    member = Member(
        reserved=reserved,
        num_threads=max(rollouts.member.num_threads, learner.member.num_threads),
        memory_gib=workers * rollouts.member.memory_gib + ranks * learner.member.memory_gib,
    )
    return Team(name=SHARED_ROLE, member=member, minimum=1, maximum=1)


def _head(config: Config, machines: Sequence[Machine]) -> Node:
    """Driver, GCS, dashboard, autoscaler, and judges that call an endpoint; larger where many groups are in flight."""
    on_gpus = bool(config.rollout.num_gpus or config.learner.num_gpus)
    node = Node(ray_cpus=0, num_cpus=4 if on_gpus else 2, num_gpus=0, memory_gib=32 if on_gpus else 8)
    return _fit(node, machines) if machines else node


def _group(team: Team, extra: float, slots: float, gpus_per_node: int, machines: Sequence[Machine]) -> Group:
    options: list[Group] = []
    for count in _counts(team):
        node = _node(team.member, count, extra, slots)
        if count > 1 and node.num_gpus > gpus_per_node:
            continue
        fitted = _fit(node, machines) if not machines or _holds(node, machines) else None
        if fitted is not None:
            options.append(
                Group(
                    name=team.name,
                    members_per_node=count,
                    node=fitted,
                    min_nodes=math.ceil(team.minimum / count),
                    max_nodes=math.ceil(team.maximum / count),
                )
            )
    if not options:
        need = _node(team.member, 1, extra, slots)
        raise RunError(
            f"no machine type holds one of {team.name}: {need.num_cpus} CPUs, {need.num_gpus} GPUs and "
            f"{need.memory_gib} GiB; offload less, use fewer GPUs per member, or write the file for another kind"
        )
    return min(options, key=_cost)


def _counts(team: Team) -> list[int]:
    """Numbers of members per node that fill all nodes at both sizes, or one GPU or CPU that members share."""
    common = math.gcd(max(1, team.minimum), team.maximum)
    reserved = team.member.reserved
    part = reserved.num_gpus or reserved.num_cpus
    return sorted({*(count for count in range(1, common + 1) if common % count == 0), _per_unit(part)})


def _per_unit(part: float) -> int:
    """Members that share one GPU or CPU of which each reserves a part."""
    return max(1, int(1 / part)) if 0 < part < 1 else 1


def _cost(group: Group) -> tuple[float, float, int]:
    """Fewest GPUs, then fewest CPUs; with GPUs many members per node, without few."""
    on_gpus = group.node.num_gpus > 0
    return (
        group.max_nodes * group.node.num_gpus,
        0.0 if on_gpus else group.max_nodes * group.node.ray_cpus,
        -group.members_per_node if on_gpus else group.members_per_node,
    )


def _node(member: Member, count: int, extra: float, slots: float) -> Node:
    reserved = member.reserved
    if reserved.num_gpus:
        gpus = math.ceil(count / _per_unit(reserved.num_gpus)) * math.ceil(reserved.num_gpus)
        cpus = max(count * member.num_threads, math.ceil(count * reserved.num_cpus))
        memory = count * member.memory_gib + extra
        return Node(ray_cpus=cpus, num_cpus=cpus, num_gpus=gpus, memory_gib=math.ceil(memory))
    # `ray start` takes whole CPUs, and Ray fills them with whatever members reserve parts of one.
    ray_cpus = max(1, math.ceil(count * reserved.num_cpus))
    held = max(count, int(ray_cpus / reserved.num_cpus)) if reserved.num_cpus else count
    return Node(
        ray_cpus=ray_cpus,
        num_cpus=max(ray_cpus, count * member.num_threads),
        num_gpus=0,
        memory_gib=math.ceil(held * max(slots, member.memory_gib) + extra),
    )


def _holds(node: Node, machines: Sequence[Machine]) -> bool:
    return any(_is_enough(machine, node) for machine in machines)


def _is_enough(machine: Machine, node: Node) -> bool:
    is_kind = (machine.num_gpus > 0) == (node.num_gpus > 0)
    large = machine.num_gpus >= node.num_gpus and machine.num_cpus >= node.num_cpus
    return is_kind and large and machine.memory_gib >= node.memory_gib


def _fit(node: Node, machines: Sequence[Machine]) -> Node:
    """The node on the smallest machine that holds it, at that machine's size; unchanged where there are none."""
    fitting = [machine for machine in machines if _is_enough(machine, node)]
    if not fitting:
        return node
    machine = min(fitting, key=lambda one: (one.num_gpus, one.num_cpus, one.memory_gib))
    return Node(
        ray_cpus=node.ray_cpus,
        num_cpus=machine.num_cpus,
        num_gpus=machine.num_gpus,
        memory_gib=machine.memory_gib,
        machine=machine.name,
    )


def _notes(config: Config, shape: ModelShape | None, *, is_cloud: bool) -> list[str]:
    notes = []
    if shape is None:
        notes.append(
            f"{config.model.path}/config.json is not at hand: host memory is a rough guess, so plan again "
            f"where the model is"
        )
    elif config.learner.num_gpus:
        notes.append(
            f"a learner rank needs about {rank_gpu_gib(config, shape):.0f} GiB of GPU memory with "
            f"{config.learner.ranks.minimum} ranks"
        )
    if "cluster" not in config.judge.chain:
        notes.append("judges reserve no CPU and no GPU: they run beside the others")
    sizes = (config.rollout.workers, config.learner.ranks)
    if all(size.minimum == size.maximum for size in sizes):
        notes.append("all sizes are fixed: ranges such as rollout.num_workers=2..6 let nodes come and go")
    if is_cloud:
        notes.append("machine types may be larger than what the members need")
    return notes
