"""A batch script for Slurm: Ray on the nodes of one job. Pure.

A job of Slurm is as large as it was admitted, somewhere between the run's smallest and largest size (`--nodes=2-4`).
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from cluster.manifests.plan import Plan
from cluster.manifests.target import Target, grace_s
from configs.require import require
from configs.schema import Config

TEMPLATE = Path(__file__).with_name("slurm.sh.template")


class _Script(Template):
    """Placeholders as @{name}, since the shell has the dollar."""

    delimiter = "@"


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """Equal nodes of one job."""

    min_nodes: int
    max_nodes: int
    num_cpus: int
    num_gpus: int
    memory_gib: int


def allocate(plan: Plan, gpus_per_node: int) -> Allocation:
    """The nodes of a job that hold the plan's groups and the head: one, or several with `gpus_per_node` GPUs each."""
    smallest, largest = (
        sum(count * group.node.num_gpus for group, count in zip(plan.groups, counts, strict=True))
        for counts in ([g.min_nodes for g in plan.groups], [g.max_nodes for g in plan.groups])
    )
    if largest:
        gpus = min(gpus_per_node, largest)
        low, high = max(1, math.ceil(smallest / gpus)), math.ceil(largest / gpus)
    else:
        gpus = 0
        low = max(1, sum(group.min_nodes for group in plan.groups))
        high = sum(group.max_nodes for group in plan.groups)
    cpus = sum(group.max_nodes * group.node.num_cpus for group in plan.groups)
    memory = sum(group.max_nodes * group.node.memory_gib for group in plan.groups)
    return Allocation(
        min_nodes=low,
        max_nodes=high,
        num_cpus=math.ceil(cpus / high) + plan.head.num_cpus,
        num_gpus=gpus,
        memory_gib=math.ceil(memory / high) + plan.head.memory_gib,
    )


def slurm(plan: Plan, config: Config, target: Target, *, train: Sequence[str], header: str, gpus_per_node: int) -> str:
    """The script.

    Args:
        train: arguments of `visionthink` that start or resume the run.
        header: comment lines.
    """
    for option, value in (("--partition", target.partition), ("--account", target.account)):
        require(not value or shlex.quote(value) == value, option, value, "must not contain spaces or shell characters")
    require(shlex.quote(target.time_limit) == target.time_limit, "--time-limit", target.time_limit, "must be HH:MM:SS")
    size = allocate(plan, gpus_per_node)
    nodes = f"{size.min_nodes}-{size.max_nodes}" if size.min_nodes < size.max_nodes else str(size.max_nodes)
    more = [f"#SBATCH --gpus-per-node={size.num_gpus}"] if size.num_gpus else []
    more += [f"#SBATCH --partition={target.partition}"] if target.partition else []
    more += [f"#SBATCH --account={target.account}"] if target.account else []
    return _Script(TEMPLATE.read_text(encoding="utf-8")).substitute(
        header=header,
        name=target.name,
        nodes=nodes,
        cpus=size.num_cpus,
        gpus=size.num_gpus,
        memory_gib=size.memory_gib,
        more="".join(f"{line}\n" for line in more),
        time_limit=target.time_limit,
        grace_s=grace_s(config),
        arguments=shlex.join(train),
    )
