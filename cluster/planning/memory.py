"""GPU memory of every process of a run: ranks by `learner.memory`, engines as vLLM divides what it may use. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from actors.engine.budget import ModelWidths, TokenBudget, most_turns, token_budget
from actors.images import ViewSpec
from cluster.manifests.members import shares_one_gpu
from cluster.planning.gpus import Gpu
from cluster.planning.workload import Workload
from configs.schema import Config
from learner.memory import (
    GIB,
    Kept,
    ModelShape,
    adapted,
    expected_bytes,
    language_bytes,
    memory_message,
    rank_bytes,
    tower_bytes,
)

ENGINE_RESERVE = int(1.0 * GIB)
"""CUDA context, graphs and what PyTorch holds outside of its blocks, of an engine."""
FREE_SHARE = 0.02
"""Of a shared GPU, for the contexts of its processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """What one process holds on its GPU, in bytes."""

    name: str
    parts: dict[str, int]
    room: int
    """That it may take."""
    note: str = ""
    activations: dict[str, int] = field(default_factory=dict)
    """Of a learner: those of its tokens and of its visual tokens, which are there at the same time or in turn."""

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def figures(self) -> dict[str, Any]:
        """For `--json`, in GiB."""
        parts = {name: size / GIB for name, size in self.parts.items()}
        total = {"total_gib": self.total / GIB, "room_gib": self.room / GIB}
        return {"name": self.name, "gib": parts, **total} | {
            f"activations_{name}_gib": size / GIB for name, size in self.activations.items()
        }


def item_size(config: Config) -> int:
    return 2 if config.model.dtype == "bfloat16" else 4


def kv_bytes(shape: ModelShape, config: Config) -> int:
    """Of a token, on each of the engine's GPUs."""
    return -(-2 * shape.text.depth * shape.kv_width * item_size(config) // config.rollout.tensor_parallel_size)


def engine_process(shape: ModelShape, widths: ModelWidths, spec: ViewSpec, config: Config, gpu: Gpu) -> Process:
    """An engine on one of its GPUs: all of what it may use is taken, the KV cache has what the others leave."""
    rollout, item = config.rollout, item_size(config)
    budget = token_budget(rollout, widths, spec, bytes_per_value=item, gpu_memory=gpu.memory_bytes)
    room = int(gpu.memory_bytes * rollout.gpu_memory_fraction)
    weights = item * -(-shape.num_parameters // rollout.tensor_parallel_size)
    activations = _step_bytes(widths, shape, budget, item) + ENGINE_RESERVE
    cache = room - weights - activations
    turns = max(0, cache) // (kv_bytes(shape, config) * rollout.max_model_len)
    wanted = most_turns(rollout) - 1
    note = f"KV cache for {turns} of up to {wanted} turns at their longest" if turns < wanted else ""
    return Process(
        name="engine",
        parts={"weights": weights, "activations": activations, "KV cache": max(0, cache)},
        room=room,
        note=note,
    )


def _step_bytes(widths: ModelWidths, shape: ModelShape, budget: TokenBudget, item: int) -> int:
    """Activations of an engine step, cached pictures, and logits of every turn in float32."""
    return item * (widths.values_per_token * budget.per_step + widths.features * budget.encoder_cache)


def rank_process(shape: ModelShape, config: Config, gpu: Gpu, work: Workload) -> tuple[Process, Kept]:
    """A learner rank, and which activations it keeps."""
    fewest = replace(config.learner, num_ranks=config.learner.ranks.minimum)
    load, in_bfloat16 = work.load(fewest), config.model.dtype == "bfloat16"
    parts, kept = expected_bytes(
        shape, fewest, in_bfloat16=in_bfloat16, load=load, gpu_bytes=gpu.memory_bytes if fewest.num_gpus else 0
    )
    room = int(gpu.memory_bytes * min(1.0, fewest.num_gpus))
    most = sum(rank_bytes(shape, fewest, in_bfloat16=in_bfloat16).values()) / GIB
    item, shape = item_size(config), adapted(shape, fewest)
    activations = {
        "tokens": language_bytes(shape, load.num_tokens, item, num_kept=kept.num_layers),
        "vision": tower_bytes(shape, fewest, load, item),
    }
    note = (
        f"activations of {load.num_tokens} tokens {activations['tokens'] / GIB:.1f} with {kept.num_layers} layers "
        f"kept, of {load.num_visual_tokens} visual tokens {activations['vision'] / GIB:.1f}; with full budgets, all "
        f"recomputed, {most:.1f} in all"
    )
    return Process(name="learner rank", parts=parts, room=room, note=note, activations=activations), kept


def problems(shape: ModelShape, widths: ModelWidths, spec: ViewSpec, config: Config, gpu: Gpu) -> Iterator[str]:
    """One line for each reason why a run does not fit such GPUs, with what would make it fit."""
    if config.learner.num_gpus and (
        problem := memory_message(
            shape, config.learner, in_bfloat16=config.model.dtype == "bfloat16", gpu_bytes=gpu.memory_bytes
        )
    ):
        yield problem
    if config.rollout.num_gpus:
        yield from _engine_problems(shape, widths, spec, config, gpu)


def _engine_problems(shape: ModelShape, widths: ModelWidths, spec: ViewSpec, config: Config, gpu: Gpu) -> Iterator[str]:
    rollout, engine = config.rollout, engine_process(shape, widths, spec, config, gpu)
    least = engine.parts["weights"] + engine.parts["activations"] + kv_bytes(shape, config) * rollout.max_model_len
    if least > engine.room:
        yield (
            f"rollout.gpu_memory_fraction={rollout.gpu_memory_fraction:g} leaves an engine {engine.room / GIB:.0f} GiB "
            f"where weights, activations and one turn of rollout.max_prompt_tokens + rollout.max_turn_tokens="
            f"{rollout.max_model_len} need {least / GIB:.0f}: {_engine_remedy(least, config, gpu)}"
        )
    per_gpu = min(1.0, rollout.num_gpus)
    if rollout.num_gpus < 1 and rollout.gpu_memory_fraction > per_gpu + FREE_SHARE:
        yield (
            f"rollout.gpu_memory_fraction={rollout.gpu_memory_fraction:g} is more than rollout.num_gpus={per_gpu:g} of "
            f"the GPU that the engine shares: set rollout.gpu_memory_fraction={per_gpu - FREE_SHARE:g}"
        )
    yield from _shared_gpu_problem(shape, config, gpu)


def _shared_gpu_problem(shape: ModelShape, config: Config, gpu: Gpu) -> Iterator[str]:
    """An engine that sleeps during updates leaves the learner its activations, but not its weights and its state.

    Nor weights with adapters added: they are a second copy, and there until the engine has read it.
    """
    if not shares_one_gpu(config):
        return
    parts = rank_bytes(shape, config.learner, in_bfloat16=config.model.dtype == "bfloat16")
    held = sum(size for name, size in parts.items() if name != "activations")
    if config.learner.lora.rank:
        held += item_size(config) * shape.num_parameters
    share = held / gpu.memory_bytes if config.engines_sleep else config.learner.num_gpus
    wanted, what = config.rollout.gpu_memory_fraction, "state" if config.engines_sleep else "share"
    if config.rollout.workers.maximum * wanted + share > 1:
        most = (1 - share - FREE_SHARE) / config.rollout.workers.maximum
        remedy = f"set rollout.gpu_memory_fraction={most:.2f}" if most > 0.1 else "set learner.offload_optimizer=true"
        yield (
            f"rollout.gpu_memory_fraction={wanted:g} and the learner's {what}, {share:.2f} of one GPU, do not fit it "
            f"together: {remedy}"
        )


def _engine_remedy(least: int, config: Config, gpu: Gpu) -> str:
    """The first of these that helps: a larger share, more GPUs per engine, shorter turns."""
    rollout, share = config.rollout, least / gpu.memory_bytes
    if rollout.num_gpus == 1 and share <= 0.92:
        return f"set rollout.gpu_memory_fraction={share + 0.02:.2f}"
    if rollout.num_gpus == 1 and rollout.tensor_parallel_size < 8:
        return f"set rollout.tensor_parallel_size={2 * rollout.tensor_parallel_size}"
    if rollout.num_gpus < 1 and share <= 0.9:
        return f"set rollout.num_gpus={share + 0.04:.2f} rollout.gpu_memory_fraction={share + 0.02:.2f}"
    return "lower rollout.max_turn_tokens or rollout.max_prompt_tokens"
