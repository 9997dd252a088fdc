"""Estimate of a learner rank's GPU memory, before anything is loaded.

Weights, gradients and optimizer state follow from the settings; activations and buffers are those of a micro-batch of
the largest size and of the largest vision pass whose blocks are not recomputed, or of the `Load` that is expected.
Only what misses by more than `TOLERANCE` is refused; `tests/cluster/planning/test_measured.py` holds the estimates
against measured runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from configs.learner import LearnerConfig

TOLERANCE = 0.1
GIB = 2**30
LIVE_LAYERS = 4
"""Layers gathered at a time: the one that computes, the one before it, whose memory is not free yet, and two ahead."""
REDUCE_BUCKET = 500_000_000
"""Gradients reduced at a time under ZeRO-1 and 2, DeepSpeed's default."""
MAX_LOGITS, LOGIT_BYTES = 2**27, 17
"""Logits of a chunk of the output layer (`learner.scoring`), and their bytes with what is derived from them."""
PATCHES_PER_TOKEN = 4
FEATURE_BYTES = 8
"""Of a value of a visual token's features: float32, and its gradient, which adds up over micro-batches."""
MARGIN = 0.05
"""Share of the device's memory that stays free, for what lies between blocks of memory and what is not estimated."""
SMALL_VISION_PASS = 1024
"""Visual tokens of a pass, 4,096 patches, which fits beside the shipped shapes on a card of 80 GB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Projections:
    """Linear layers of a part of a layer."""

    count: int
    sides: int
    """Inputs and outputs of each, added up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Equal layers, one after the other."""

    depth: int
    width: int
    query_width: int
    """Of all heads together."""
    layer: int
    """Parameters of one."""
    attention: Projections
    mlp: Projections
    kept: int
    """Values per token that one layer keeps for its backward pass."""
    adapter: int = 0
    """Parameters of the adapters of one; 0 without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What the memory and the speed of a model depend on; read by its family (`learner.families.lookup.read_shape`)."""

    text: Stack
    vision: Stack
    vocabulary: int
    num_parameters: int
    kv_width: int
    """Values of a token's key in a layer, and as many of its value."""
    num_features: int
    """Features of a visual token, as wide as the language model: the tower's last, and those for layers further in."""
    window_patches: int
    """Patches that a block of the tower attends to, unless it attends to the whole picture."""
    whole_share: float
    """Of the blocks that do."""

    @property
    def num_adapted(self) -> int:
        """Parameters of all adapters; 0 without."""
        return self.text.depth * self.text.adapter + self.vision.depth * self.vision.adapter

    @property
    def num_trained(self) -> int:
        """Parameters with gradients and optimizer state; a tower that is frozen beside a trained model counts."""
        return self.num_adapted or self.num_parameters

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, the largest tensor of the model."""
        return self.vocabulary * self.text.width


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a rank computes at a time."""

    num_tokens: int
    """Of the largest micro-batch."""
    num_visual_tokens: int
    """Of the largest vision pass."""
    recomputes_blocks: bool = False
    """Whether a view is larger than a vision pass, so that its blocks are recomputed one by one."""

    @classmethod
    def most(cls, config: LearnerConfig) -> Load:
        """All that the settings allow."""
        return cls(num_tokens=config.max_tokens_per_micro_batch, num_visual_tokens=config.max_tokens_per_vision_pass)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Activations that stay for the backward pass; the others are computed again."""

    num_layers: int
    """Of the language model."""
    has_tower: bool
    """Whether those of the tower stay while the micro-batches of a round are learned from."""


def deepspeed_stage(config: LearnerConfig, *, in_bfloat16: bool) -> int:
    """The ZeRO stage that DeepSpeed runs: the config's, but for stage 1 in bfloat16, which runs as stage 2.

    DeepSpeed's stage 1 in bfloat16 adds the micro-batches' gradients up in bfloat16, where a small one is lost beside a
    large sum. With float32 sums it becomes another optimizer, which keeps all of them whole on every rank; stage 2
    shards them, for a reduction per micro-batch.
    """
    return 2 if config.zero_stage == 1 and in_bfloat16 else config.zero_stage


def learns_in_rounds(config: LearnerConfig) -> bool:
    """Whether activations of the vision tower may stay during micro-batches, which are smaller then.

    Not under ZeRO-3, where a backward pass follows its forward pass directly; and with an optimizer in host memory each
    backward pass brings all gradients there, so that the fewest are best.
    """
    return config.train_vision and config.zero_stage < 3 and not config.offload_optimizer


def adapted(shape: ModelShape, config: LearnerConfig) -> ModelShape:
    """The shape with the adapters that the settings put beside it (`learner.lora`), or unchanged."""
    lora = config.lora
    if not lora.rank:
        return shape

    def with_adapters(stack: Stack) -> Stack:
        parts = [stack.attention, stack.mlp] if lora.target == "all" else [stack.attention]
        sides, count = (sum(getattr(part, name) for part in parts) for name in ("sides", "count"))
        # What lies between the two halves of an adapter stays for the backward pass.
        return replace(stack, adapter=lora.rank * sides, kept=stack.kept + lora.rank * count)

    vision = with_adapters(shape.vision) if config.train_vision else shape.vision
    return replace(shape, text=with_adapters(shape.text), vision=vision)


def rank_bytes(
    shape: ModelShape, config: LearnerConfig, *, in_bfloat16: bool, load: Load | None = None
) -> dict[str, int]:
    """Estimated peak bytes of a rank, by what holds them, with as much recomputed as the settings allow.

    Args:
        load: by default the most that the settings allow.
    """
    stage, item = deepspeed_stage(config, in_bfloat16=in_bfloat16), 2 if in_bfloat16 else 4
    shape = adapted(shape, config)
    total, trained = shape.num_parameters + shape.num_adapted, shape.num_trained
    share, trained_share = (-(-each // config.ranks.minimum) for each in (total, trained))
    # Gathered layers and the output layer (`learner.zero.sharding`).
    live = item * (shape.embedding + LIVE_LAYERS * shape.text.layer) if stage == 3 or config.shards_reference else 0
    optimizer = {0: 8 * trained}.get(stage, 0 if config.offload_optimizer else 12 * trained_share)
    gradients = 4 * trained if stage < 2 else 0 if config.offload_optimizer else 4 * trained_share
    bucket = {0: 0, 3: 2 * 2 * shape.text.layer}.get(stage, REDUCE_BUCKET)
    if config.chosen_objective.kl_coefficient == 0 or config.offload_reference or config.lora.rank:
        reference = 0
    else:
        reference = item * (share if config.shards_reference else total)
    return {
        "weights": item * (share if stage == 3 else total) + live,
        "gradients": gradients + item * bucket,
        "optimizer": optimizer,
        "reference": reference,
        "activations": _activation_bytes(shape, config, load or Load.most(config), item),
    }


def expected_bytes(
    shape: ModelShape, config: LearnerConfig, *, in_bfloat16: bool, load: Load, gpu_bytes: int
) -> tuple[dict[str, int], Kept]:
    """As `rank_bytes`, with the activations that are kept because the GPU has room for them (`learner.recompute`)."""
    parts, item = rank_bytes(shape, config, in_bfloat16=in_bfloat16, load=load), 2 if in_bfloat16 else 4
    shape = adapted(shape, config)
    in_one_pass = learns_in_rounds(config) and not load.recomputes_blocks
    if not config.gradient_checkpointing:
        return parts, Kept(num_layers=shape.text.depth, has_tower=in_one_pass)
    if config.zero_stage == 3:
        return parts, Kept(num_layers=0, has_tower=False)
    used = sum(parts.values()) - parts["activations"]
    share = int(gpu_bytes * min(1.0, config.num_gpus))
    room = share - used - gradient_reserve(shape, config, item) - int(MARGIN * gpu_bytes)
    num_kept = layers_that_fit(shape, load.num_tokens, item, room=room)
    language = language_bytes(shape, load.num_tokens, item, num_kept=num_kept)
    vision = tower_bytes(shape, config, load, item)
    is_whole = in_one_pass and num_kept == shape.text.depth and language + vision <= room
    activations = language + vision if is_whole else max(language, vision)
    return parts | {"activations": activations}, Kept(num_layers=num_kept, has_tower=is_whole)


def gradient_reserve(shape: ModelShape, config: LearnerConfig, item: int) -> int:
    """Bytes that DeepSpeed takes for gradients at the beginning of a backward pass, when all activations are there."""
    return item * (-(-adapted(shape, config).num_trained // config.ranks.minimum) + 2 * REDUCE_BUCKET)


def _activation_bytes(shape: ModelShape, config: LearnerConfig, load: Load, item: int) -> int:
    vision = tower_bytes(shape, config, load, item)
    if not config.gradient_checkpointing:
        return language_bytes(shape, load.num_tokens, item, num_kept=shape.text.depth) + vision
    # The tower is backpropagated after the micro-batches.
    return max(language_bytes(shape, load.num_tokens, item, num_kept=0), vision)


def tower_bytes(shape: ModelShape, config: LearnerConfig, load: Load, item: int) -> int:
    """Activations of the largest vision pass in its backward pass."""
    if not config.train_vision:
        return 0
    whole = vision_bytes(shape, load.num_visual_tokens, item)
    if not load.recomputes_blocks:
        return whole
    inputs = item * PATCHES_PER_TOKEN * load.num_visual_tokens * shape.vision.depth * shape.vision.width
    return inputs + whole // shape.vision.depth


def vision_bytes(shape: ModelShape, num_visual_tokens: int, item: int) -> int:
    """Activations of a pass of the tower; `item` is the bytes of a value."""
    features = FEATURE_BYTES * num_visual_tokens * shape.num_features * shape.text.width
    return item * PATCHES_PER_TOKEN * num_visual_tokens * shape.vision.depth * shape.vision.kept + features


def language_bytes(shape: ModelShape, num_tokens: int, item: int, *, num_kept: int) -> int:
    """Activations of a micro-batch of which `num_kept` layers keep theirs; the others keep their inputs."""
    head = LOGIT_BYTES * min(MAX_LOGITS, num_tokens * shape.vocabulary)
    if not shape.num_adapted:
        # Float32 gradient of the output layer's weight, and its copy in the model's precision.
        head += (4 + item) * shape.embedding
    one_layer = item * num_tokens * shape.text.kept
    again = shape.text.depth - num_kept
    inputs = item * num_tokens * again * shape.text.width
    return num_kept * one_layer + inputs + (max(head, one_layer) if again else head)


def layers_that_fit(shape: ModelShape, num_tokens: int, item: int, *, room: int) -> int:
    """Most layers that can keep their activations of a micro-batch in this many bytes."""
    depth = shape.text.depth
    fits = (k for k in range(depth, 0, -1) if language_bytes(shape, num_tokens, item, num_kept=k) <= room)
    return next(fits, 0)


def memory_message(shape: ModelShape, config: LearnerConfig, *, in_bfloat16: bool, gpu_bytes: int) -> str | None:
    """Message for a learner that does not fit its GPU even if the estimate is too high; None if it may fit.

    Args:
        gpu_bytes: memory of the whole GPU, of which a rank has the part that learner.num_gpus says.
    """
    room = int(gpu_bytes * min(1.0, config.num_gpus))

    def parts_of(settings: LearnerConfig) -> dict[str, int]:
        return rank_bytes(shape, settings, in_bfloat16=in_bfloat16)

    parts = parts_of(config)
    if sum(parts.values()) * (1 - TOLERANCE) <= room:
        return None
    shown = ", ".join(f"{name} {size / GIB:.0f}" for name, size in parts.items() if size)
    return (
        f"learner.zero_stage={config.zero_stage} with learner.num_ranks={config.num_ranks} and "
        f"learner.max_tokens_per_micro_batch={config.max_tokens_per_micro_batch} needs about "
        f"{sum(parts.values()) / GIB:.0f} GiB of GPU memory per rank ({shown}), of {room / GIB:.0f}: "
        f"{_remedy(config, lambda settings: sum(parts_of(settings).values()) <= room)}"
    )


def _remedy(config: LearnerConfig, fits: Callable[[LearnerConfig], bool]) -> str:
    """The fewest settings with which it fits, the cheaper ones first."""
    savings = [(name, value) for name, value in _savings(config) if getattr(config, name) != value]
    for count in range(1, len(savings) + 1):
        for changes in combinations(savings, count):
            if fits(replace(config, **dict(changes))):
                return "set " + ", ".join(f"learner.{name}={str(value).lower()}" for name, value in changes)
    for num_ranks in (config.ranks.minimum * 2**power for power in range(1, 6)):
        if fits(replace(config, zero_stage=3, num_ranks=num_ranks, gradient_checkpointing=True)):
            return f"set learner.zero_stage=3, learner.num_ranks={num_ranks}, learner.gradient_checkpointing=true"
    return "raise learner.num_ranks with learner.zero_stage=3, or lower learner.max_tokens_per_micro_batch"


def _savings(config: LearnerConfig) -> Iterator[tuple[str, Any]]:
    if config.max_tokens_per_vision_pass > SMALL_VISION_PASS:
        yield "max_tokens_per_vision_pass", SMALL_VISION_PASS
    yield "gradient_checkpointing", True
    if config.ranks.minimum > 1:
        yield "zero_stage", 3
    if config.chosen_objective.kl_coefficient > 0 and not config.lora.rank:
        yield "offload_reference", True
    if config.zero_stage:
        yield "offload_optimizer", True
