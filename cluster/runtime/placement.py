"""Resources of each kind of process: a pure function of the config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from configs.schema import Config
from judge.llm.served_model import num_gpus_wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What Ray reserves for one process."""

    num_cpus: float
    num_gpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    worker: Resources
    """One rollout worker."""
    rank: Resources
    """One learner rank."""

    def total(self, config: Config) -> Resources:
        """Resources of the whole run at its largest.

        Judges reserve none, except for the GPUs of an LLM in the cluster.
        """
        rollout, learner = config.rollout, config.learner
        num_workers = rollout.workers.maximum + rollout.num_spares
        return self._sum(config, num_workers, learner.ranks.maximum + learner.num_spares)

    def least(self, config: Config) -> Resources:
        """What the run needs to start."""
        return self._sum(config, config.rollout.workers.minimum, config.learner.ranks.minimum)

    def _sum(self, config: Config, num_workers: int, num_ranks: int) -> Resources:
        return Resources(
            num_cpus=num_workers * self.worker.num_cpus + num_ranks * self.rank.num_cpus,
            num_gpus=num_workers * self.worker.num_gpus
            + num_ranks * self.rank.num_gpus
            + num_gpus_wanted(config.judge),
        )


def place(config: Config) -> Placement:
    """Resources per process. On CPU, engines and ranks share cores, so each reserves a fraction of one."""
    return Placement(
        worker=Resources(
            num_cpus=1.0 if config.rollout.num_gpus else 0.5,
            num_gpus=config.rollout.num_gpus * config.rollout.tensor_parallel_size,
        ),
        rank=Resources(num_cpus=1.0 if config.learner.num_gpus else 0.5, num_gpus=config.learner.num_gpus),
    )


def capacity_problem(config: Config, available: Mapping[str, float]) -> str | None:
    """What is missing for the run to start at its smallest size; None if nothing is."""
    needed = place(config).least(config)
    for kind, num in (("CPU", needed.num_cpus), ("GPU", needed.num_gpus)):
        held = available.get(kind, 0.0)
        if num > held:
            judge_gpus = num_gpus_wanted(config.judge)
            beside = f" with {judge_gpus:g} GPUs for judge.cluster" if judge_gpus else ""
            return (
                f"rollout.num_workers={config.rollout.num_workers} and learner.num_ranks={config.learner.num_ranks}"
                f"{beside} need {num:g} {kind}s, the cluster has {held:g}"
            )
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSize:
    """How much the cluster has, and whether it may grow."""

    now: Mapping[str, float]
    has_autoscaler: bool
    most: Mapping[str, float] | None
    """What it can grow to; None if that is not known."""


def wait_for_room(config: Config, size: ClusterSize) -> str | None:
    """What a run has to wait for before it can start; None if the cluster has room now.

    Raises:
        ValueError: it is of no use to wait, or `rollout.wait_for_nodes` forbids it.
    """
    problem = capacity_problem(config, size.now)
    if problem is None:
        return None
    wait = config.rollout.wait_for_nodes
    if wait == "never" or (wait == "auto" and not size.has_autoscaler):
        remedy = "reduce them, add nodes, or set rollout.wait_for_nodes=always where nodes are about to come"
        raise ValueError(f"{problem}: {remedy}")
    if wait == "auto" and size.most is not None and (hopeless := capacity_problem(config, size.most)) is not None:
        raise ValueError(f"{hopeless} at its largest: reduce them, or let it grow further")
    return f"{problem}: waiting up to rollout.wait_timeout_s={config.rollout.wait_timeout_s:g} for nodes"


def actor_options(resources: Resources, environment: dict[str, str]) -> dict[str, Any]:
    """Options of a Ray actor with these resources and environment variables.

    Actors are spread over the nodes, so that the loss of one costs few. What must stay together (the GPUs of an engine
    with tensor parallelism) belongs to one actor, and Ray never divides that over nodes.
    """
    return {
        "scheduling_strategy": "SPREAD",
        "num_cpus": resources.num_cpus,
        "num_gpus": resources.num_gpus,
        "runtime_env": {"env_vars": {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", **environment}},
    }
