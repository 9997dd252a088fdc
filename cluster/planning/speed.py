"""Seconds of a step by stage, from a workload, a model's shape and a GPU. Pure.

Rates are those of a few measured runs of `docs/benchmarks.md`; `tests/cluster/planning/test_measured.py` says which,
and holds the estimates against others. On GPUs that were not measured they are a guess.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.planning.gpus import Gpu
from cluster.planning.memory import item_size
from cluster.planning.workload import Workload, head_flops, language_flops, views_flops
from configs.schema import Config
from learner.memory import Kept, Load, ModelShape, adapted

LANGUAGE_USE, VISION_USE, PREFILL_USE = 0.62, 0.53, 0.45
"""Of the speed of matrix products: learner's language model, its tower, the engine's prompts and pictures."""
ZERO_3_SPEED = 0.905
"""Against ZeRO-2, where layers are gathered over NVLink."""
HOST_ADAM_S = 3.0e-9
"""Per parameter that a rank's optimizer updates in host memory, on 32 cores."""
ADAM_BYTES = 60
"""Read and written per parameter of an optimizer step on the GPU, with norms and copies."""
SEQUENCE_S = 7.0e-5
"""Host time of a sequence in an engine step: scheduling, sampling, log-probabilities, what is ruled out."""
EAGER_LAYER_S, GRAPH_LAYER_S = 8.0e-4, 3.0e-5
"""Host time of a layer in an engine step, without and with CUDA graphs."""
PICTURE_S = 0.04
"""Per megapixel of a full view: decoding, cutting and preprocessing, in a rollout worker."""
NODE_LINK_GB_S = 40.0
"""Of a GPU to another node."""
SYNC_S, NCCL_USE, IPC_USE, SHARED_GB_S = 0.0105, 1.0, 0.38, 2.0
"""Weight sync: fixed part; NCCL of the link between GPUs; CUDA IPC of the GPU's memory; through shared memory."""
CPU_LANGUAGE_GFLOPS, CPU_VISION_GFLOPS = 62.0, 55.0
CPU_SEQUENCE_S, CPU_PICTURE_S, CPU_STEP_S = 2.5e-4, 0.6, 0.02
"""On two cores: a generated token; a megapixel of a picture; an optimizer step of the tiny model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of a step by stage."""

    play_s: float
    vision_s: float
    reference_s: float
    learn_s: float
    """Forward and backward passes of the language model."""
    optimizer_s: float
    publish_s: float

    @property
    def update_s(self) -> float:
        return self.vision_s + self.reference_s + self.learn_s + self.optimizer_s


def step_time(
    shape: ModelShape, config: Config, gpu: Gpu | None, work: Workload, load: Load, *, kept: Kept, gpus_per_node: int
) -> StepTime | None:
    """Seconds of a step; None for a GPU whose speed is not known.

    Args:
        gpu: None where engine and learner run on CPUs.
        kept: activations that are not computed again.
    """
    on_gpus = (config.rollout.num_gpus, config.learner.num_gpus)
    if any(on_gpus) and (gpu is None or gpu.tflops is None):
        return None
    play = _play_s(shape, config, gpu, work) if on_gpus[0] and gpu else _cpu_play_s(config, work)
    flops = _update_flops(shape, config, work, load, kept)
    if on_gpus[1] and gpu:
        vision, reference, learn, optimizer = _gpu_update(shape, config, gpu, work, load, flops, gpus_per_node)
    else:
        rates = (CPU_VISION_GFLOPS, CPU_LANGUAGE_GFLOPS, CPU_LANGUAGE_GFLOPS)
        vision, reference, learn = (each / (rate * 1e9) for each, rate in zip(flops, rates, strict=True))
        optimizer = work.groups / config.learner.prompts_per_mini_batch * CPU_STEP_S
    return StepTime(
        play_s=play,
        vision_s=vision,
        reference_s=reference,
        learn_s=learn,
        optimizer_s=optimizer,
        publish_s=publish_s(shape, config, gpu, gpus_per_node),
    )


def _gpu_update(
    shape: ModelShape,
    config: Config,
    gpu: Gpu,
    work: Workload,
    load: Load,
    flops: tuple[float, float, float],
    gpus_per_node: int,
) -> tuple[float, float, float, float]:
    """Seconds of the tower, the reference policy, the language model and the optimizer."""
    assert gpu.tflops is not None
    ranks, peak = config.learner.ranks.minimum, gpu.tflops * 1e12
    vision, reference, learn = flops
    language_rate = ranks * peak * LANGUAGE_USE
    learn_s = learn / language_rate
    if config.learner.zero_stage == 3 and ranks > 1:
        slowest = gpu.link_gb_s if ranks <= gpus_per_node else min(gpu.link_gb_s, NODE_LINK_GB_S)
        micro_batches = math.ceil(work.groups * work.learned_tokens / ranks / max(1, load.num_tokens))
        gathered_s = 3 * micro_batches * item_size(config) * shape.num_parameters / (slowest * 1e9)
        learn_s = max(learn_s / ZERO_3_SPEED, gathered_s)
    steps = work.groups / config.learner.prompts_per_mini_batch
    per_parameter = HOST_ADAM_S if config.learner.offload_optimizer else ADAM_BYTES / (gpu.memory_gb_s * 1e9)
    optimizer_s = steps * adapted(shape, config.learner).num_trained / ranks * per_parameter
    return vision / (ranks * peak * VISION_USE), reference / language_rate, learn_s, optimizer_s


def _play_s(shape: ModelShape, config: Config, gpu: Gpu, work: Workload) -> float:
    """The engines in parallel; of each, pictures and prompts, then a step for every token of its longest turns."""
    assert gpu.tflops is not None
    rollout, engines = config.rollout, config.rollout.workers.minimum
    groups = math.ceil(work.groups / engines)
    waves = math.ceil(groups / rollout.max_groups_in_flight)
    flops = language_flops(shape, work.prefilled_tokens, work.prefill_pairs) + views_flops(shape, work)
    rate = gpu.tflops * 1e12 * PREFILL_USE * rollout.tensor_parallel_size
    prompts_s = groups * (flops / rate + PICTURE_S * megapixels(work))
    num_steps = waves * work.turn_tokens * (1 + work.calls if work.asking else 1)
    layer_s = EAGER_LAYER_S if rollout.enforce_eager else GRAPH_LAYER_S
    weights_s = item_size(config) * shape.num_parameters / rollout.tensor_parallel_size / (gpu.memory_gb_s * 1e9)
    step_s = max(shape.text.depth * layer_s, weights_s)
    return prompts_s + num_steps * step_s + groups * work.generated_tokens * SEQUENCE_S


def _update_flops(
    shape: ModelShape, config: Config, work: Workload, load: Load, kept: Kept
) -> tuple[float, float, float]:
    """Operations of the tower, of the reference policy, and of the language model in an update on all ranks."""
    learner = config.learner
    views = work.groups * views_flops(shape, work)
    layers = work.groups * language_flops(shape, work.learned_tokens, work.token_pairs)
    head = work.groups * head_flops(shape, work.generated_tokens)
    again = 1 - kept.num_layers / shape.text.depth
    passes: float = 3 if kept.has_tower else 5 if load.recomputes_blocks else 4
    adapters = adapted(shape, learner).num_adapted / shape.num_parameters
    if learner.lora.rank:  # frozen weights have no gradient; adapters cost what weights of their number do
        passes += passes * adapters - 1
    vision = views * (passes if learner.train_vision else 1)
    reference = layers + head + views if learner.chosen_objective.kl_coefficient else 0.0
    if learner.lora.rank:
        return vision, reference, (2 + again + (3 + again) * adapters) * layers + 3 * head
    return vision, reference, (3 + again) * layers + 4 * head


def publish_s(shape: ModelShape, config: Config, gpu: Gpu | None, gpus_per_node: int) -> float:
    """From the learner's call until every engine serves the version."""
    size_gb = item_size(config) * shape.num_parameters / 1e9
    transport = config.transport
    if transport == "shared_memory" or gpu is None:
        return SYNC_S + size_gb / SHARED_GB_S
    if transport == "ipc":
        return SYNC_S + size_gb / (IPC_USE * gpu.memory_gb_s)
    ranks, workers = config.learner.ranks.minimum, config.rollout.workers.minimum
    is_one_node = ranks + workers * config.rollout.tensor_parallel_size <= gpus_per_node
    link = gpu.link_gb_s if is_one_node else min(gpu.link_gb_s, NODE_LINK_GB_S)
    return SYNC_S + size_gb / (NCCL_USE * link)


def _cpu_play_s(config: Config, work: Workload) -> float:
    seconds = CPU_SEQUENCE_S * work.generated_tokens + CPU_PICTURE_S * megapixels(work)
    return work.groups * seconds / config.rollout.workers.minimum


def megapixels(work: Workload) -> float:
    """Of a full view."""
    return work.visual_tokens * work.token_side**2 / 1e6
