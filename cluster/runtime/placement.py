"""Resources of each kind of process: a pure function of the config."""

from __future__ import annotations

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
        """Resources of the whole run. Judges reserve none, except for the GPUs of an LLM in the cluster."""
        num_workers, num_ranks = config.rollout.num_workers, config.learner.ranks.minimum
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


def check_capacity(config: Config, available: dict[str, float]) -> None:
    """Raise ValueError if the cluster can never provide the resources, instead of waiting forever."""
    wanted = place(config).total(config)
    for kind, num in (("CPU", wanted.num_cpus), ("GPU", wanted.num_gpus)):
        held = available.get(kind, 0.0)
        if num > held:
            judge_gpus = num_gpus_wanted(config.judge)
            beside = f" with {judge_gpus:g} GPUs for judge.cluster" if judge_gpus else ""
            raise ValueError(
                f"rollout.num_workers={config.rollout.num_workers} and learner.num_ranks={config.learner.num_ranks}"
                f"{beside} need {num:g} {kind}s, the cluster has {held:g}: reduce them or add nodes"
            )


def actor_options(resources: Resources, environment: dict[str, str]) -> dict[str, Any]:
    """Options of a Ray actor with these resources and environment variables."""
    return {
        "num_cpus": resources.num_cpus,
        "num_gpus": resources.num_gpus,
        "runtime_env": {"env_vars": {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", **environment}},
    }
