"""What one member of a run needs of its node: CPUs, GPUs and host memory. Pure.

GPUs and what Ray reserves are those of `place`, parameters and a rank's state those of `learner.memory`. Host memory is
an estimate on the safe side, since a pod that exceeds its limit is killed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from cluster.runtime.placement import Resources, place
from configs.schema import Config
from judge.llm.served_model import num_gpus_wanted
from learner.memory import GIB, ModelShape, adapted, rank_bytes

GPU_CPUS = 8
"""Cores of an engine or rank on a GPU: decoding of images, tokenization, data transfer."""
ENGINE_GIB, CPU_ENGINE_GIB = 8.0, 2.0
"""Host memory of an engine process without weights."""
RANK_GIB, CPU_RANK_GIB = 8.0, 2.0
"""Host memory of a learner rank without model and state."""
UNKNOWN_ENGINE_GIB, UNKNOWN_RANK_GIB = 60.0, 120.0
"""Host memory per GPU where the model's shape is not known."""
SAVED_BYTES = 12
"""Per parameter: float32 weight and both moments, copied to host memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One engine or learner rank."""

    reserved: Resources
    """What Ray reserves for it."""
    num_threads: int
    """CPU cores that it keeps busy."""
    memory_gib: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """Equal members of a run: rollouts, learner or judges."""

    name: str
    member: Member
    minimum: int
    """Members to start with; judges may be 0."""
    maximum: int


def sized(config: Config, *, num_workers: int, num_ranks: int) -> Config:
    """The config with plain sizes in place of ranges."""
    return replace(
        config,
        rollout=replace(config.rollout, num_workers=num_workers),
        learner=replace(config.learner, num_ranks=num_ranks),
    )


def shares_one_gpu(config: Config) -> bool:
    """Whether all members sit on one GPU even at full size, so that weights go by CUDA IPC."""
    workers, ranks = config.rollout.workers.maximum, config.learner.ranks.maximum
    return sized(config, num_workers=workers, num_ranks=ranks).transport == "ipc"


def teams(config: Config, shape: ModelShape | None) -> list[Team]:
    """The rollout workers, the learner ranks, and the engines of an LLM judge where the cluster serves one.

    Args:
        shape: of the policy; None where its config.json is not at hand.
    """
    workers, ranks = config.rollout.workers, config.learner.ranks
    most_workers = workers.maximum + config.rollout.num_spares
    most_ranks = ranks.maximum + config.learner.num_spares
    found = [
        Team(name="rollouts", member=_worker(config, shape), minimum=workers.minimum, maximum=most_workers),
        Team(name="learner", member=_rank(config, shape), minimum=ranks.minimum, maximum=most_ranks),
    ]
    if "cluster" in config.judge.chain:
        pool = config.judge.cluster
        found.append(
            Team(name="judges", member=_judge(config), minimum=pool.min_replicas, maximum=max(1, pool.max_replicas))
        )
    return found


def weight_gib(config: Config, shape: ModelShape | None) -> float:
    """One copy of the policy's weights in the model's precision; 0 where the shape is not known."""
    return shape.num_parameters * _item(config) / GIB if shape else 0.0


def rank_gpu_gib(config: Config, shape: ModelShape) -> float:
    """Estimated GPU memory of a rank when the fewest ranks share the state."""
    fewest = replace(config.learner, num_ranks=config.learner.ranks.minimum)
    return sum(rank_bytes(shape, fewest, in_bfloat16=config.model.dtype == "bfloat16").values()) / GIB


def _item(config: Config) -> int:
    return 2 if config.model.dtype == "bfloat16" else 4


def _worker(config: Config, shape: ModelShape | None) -> Member:
    rollout, reserved = config.rollout, place(config).worker
    if not rollout.num_gpus:
        memory = CPU_ENGINE_GIB + rollout.kv_cache_gib + 2 * weight_gib(config, shape)
        return Member(reserved=reserved, num_threads=rollout.num_threads, memory_gib=memory)
    known = ENGINE_GIB * rollout.tensor_parallel_size + weight_gib(config, shape)
    memory = known if shape else UNKNOWN_ENGINE_GIB * reserved.num_gpus
    return Member(reserved=reserved, num_threads=GPU_CPUS * rollout.tensor_parallel_size, memory_gib=memory)


def _rank(config: Config, shape: ModelShape | None) -> Member:
    learner, reserved = config.learner, place(config).rank
    on_gpu = bool(learner.num_gpus)
    num_threads = GPU_CPUS if on_gpu else learner.num_threads
    if shape is None:
        memory = UNKNOWN_RANK_GIB * learner.num_gpus if on_gpu else UNKNOWN_RANK_GIB
        return Member(reserved=reserved, num_threads=num_threads, memory_gib=memory)
    sizes = config.learner.ranks
    share = math.ceil(adapted(shape, learner).num_trained / sizes.minimum)
    # A rank's last two copies of its own state, an earlier one while it is still being written, and the copies that it
    # holds for a peer, from which a lost rank is restored.
    num_copies = (3 if learner.copy_state else 2) + (0 if sizes.maximum == 1 else 2)
    saved = SAVED_BYTES * share * num_copies
    loaded = _item(config) * shape.num_parameters
    if on_gpu:
        state = 16 * share if learner.offload_optimizer else 0
        state += _item(config) * share if learner.offload_reference else 0
        memory = RANK_GIB + (saved + loaded + state) / GIB
    else:
        memory = CPU_RANK_GIB + rank_gpu_gib(config, shape) + (saved + loaded) / GIB
    return Member(reserved=reserved, num_threads=num_threads, memory_gib=memory)


def _judge(config: Config) -> Member:
    """One engine of the pool, whose model is another one than the policy's."""
    pool = config.judge.cluster
    one = replace(config.judge, cluster=replace(pool, min_replicas=0))
    if gpus := num_gpus_wanted(one):
        whole = max(1, int(gpus))
        reserved = Resources(num_cpus=float(whole), num_gpus=gpus)
        memory = UNKNOWN_ENGINE_GIB * whole
        return Member(reserved=reserved, num_threads=GPU_CPUS * whole, memory_gib=memory)
    memory = 3 * CPU_ENGINE_GIB + pool.kv_cache_gib
    return Member(reserved=Resources(num_cpus=0.5, num_gpus=0.0), num_threads=pool.num_threads, memory_gib=memory)
