"""Every knob of a run, as frozen dataclasses: the only list of settings there is.

Each section checks itself, `Config` checks what holds between sections, and a worker is handed its own section
only. A value that cannot work is refused here, before any process starts, with the field, the value and the remedy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from configs.judges import JudgeConfig
from configs.require import require


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    name: str = "tiny"
    """Folder of the run under `dir`; letters, digits, dot, dash and underscore."""
    dir: str = "runs"
    """Where runs are kept."""
    seed: int = 0
    """Seeds the data order, the sampler and the learner. Any integer."""

    def __post_init__(self) -> None:
        legal = bool(self.name) and all(c.isalnum() or c in "._-" for c in self.name) and self.name.strip(".") != ""
        require(legal, "run.name", self.name, "use letters, digits, '.', '_' and '-' only")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    path: str = "configs/tiny"
    """Hugging Face folder with config.json, safetensors and tokenizer (Qwen2.5-VL family)."""
    load: Literal["weights", "random"] = "weights"
    """`random` draws weights from config.json alone: real shapes for speed and memory figures."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Weights in the engine and the learner's forward pass. The CPU engines need float32."""
    prompt: str = "tiny"
    """Wording of the instructions: `tiny`, `qwen`, or the path of a YAML file with the same keys."""
    min_pixels: int = 56 * 56
    """Fewest pixels of the full view."""
    max_pixels: int = 224 * 224
    """Most pixels of the full view; a larger image is scaled down to it."""

    def __post_init__(self) -> None:
        require(self.min_pixels > 0, "model.min_pixels", self.min_pixels, "give a positive number of pixels")
        require(
            self.max_pixels >= self.min_pixels,
            "model.max_pixels",
            self.max_pixels,
            f"at least model.min_pixels={self.min_pixels}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    train: str = "data/shapes/train.parquet"
    """Parquet file, folder or pattern (`folder/train-*`) of Parquet files, or Hugging Face `save_to_disk` folder."""
    heldout: str = "data/shapes/heldout.parquet"
    """The same, for evaluation."""
    max_skipped_fraction: float = 0.01
    """Stop when more than this share of the rows read so far was unusable (and at least 10 were)."""
    max_source_pixels: int = 64_000_000
    """Refuse a picture whose header announces more pixels than this."""
    max_side_ratio: float = 100.0
    """Refuse a picture whose longer side is more than this many times the shorter."""

    def __post_init__(self) -> None:
        require(
            0 <= self.max_skipped_fraction <= 1,
            "data.max_skipped_fraction",
            self.max_skipped_fraction,
            "a share from 0 to 1",
        )
        require(
            self.max_source_pixels > 0, "data.max_source_pixels", self.max_source_pixels, "a positive number of pixels"
        )
        require(self.max_side_ratio >= 1, "data.max_side_ratio", self.max_side_ratio, "a ratio of at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig:
    mode: Literal["efficient", "general"] = "efficient"
    """`efficient`: quarter view first, the tool on offer. `general`: full view, one turn, no tool."""
    group_size: int = 8
    """G, episodes per prompt."""
    temperature: float = 1.0
    """Of sampling in training. Evaluation is greedy."""
    max_turn_tokens: int = 48
    """Most tokens the policy may generate in one turn."""
    max_prompt_tokens: int = 512
    """Longest prompt of a turn, visual tokens included; a longer one ends the episode as truncated."""
    num_workers: int = 1
    """Rollout workers, one vLLM engine each."""
    max_groups_in_flight: int = 16
    """Groups that one worker plays at a time."""
    group_timeout_s: float = 600.0
    """Deadline for one group of episodes."""
    start_timeout_s: float = 900.0
    """Deadline for an engine to come up."""
    num_gpus: float = 0.0
    """GPUs (or a share of one) per engine process; 0 runs vLLM's CPU build."""
    gpu_memory_fraction: float = 0.85
    """Share of the GPU's memory that vLLM may take."""
    tensor_parallel_size: int = 1
    """Processes, with a GPU each, that one engine spreads over."""
    kv_cache_gib: int = 1
    """Memory for the CPU engine's KV cache."""
    num_threads: int = 1
    """OpenMP threads of a CPU engine. A small model is fastest with one: more wait on each other."""
    max_prefill_tokens: int = 0
    """Prompt tokens that the engine reads in one step; 0 chooses by the model and the GPU's memory."""
    enforce_eager: bool = True
    """Skip graph capture and compilation: slower steps, a much faster start."""

    def __post_init__(self) -> None:
        require(
            self.group_size >= 2,
            "rollout.group_size",
            self.group_size,
            "a group needs 2 episodes or more to have an advantage",
        )
        require(
            self.temperature > 0,
            "rollout.temperature",
            self.temperature,
            "training samples; use `visionthink eval` for greedy play",
        )
        for name in (
            "max_turn_tokens",
            "max_prompt_tokens",
            "num_workers",
            "max_groups_in_flight",
            "tensor_parallel_size",
            "kv_cache_gib",
            "num_threads",
        ):
            require(getattr(self, name) >= 1, f"rollout.{name}", getattr(self, name), "at least 1")
        for name in ("group_timeout_s", "start_timeout_s"):
            require(getattr(self, name) > 0, f"rollout.{name}", getattr(self, name), "a positive number of seconds")
        most = self.max_prefill_tokens
        require(most >= 0, "rollout.max_prefill_tokens", most, "0 to have it chosen, or a number of tokens")
        require(self.num_gpus >= 0, "rollout.num_gpus", self.num_gpus, "0 for CPU, or GPUs per worker")
        parallel = self.tensor_parallel_size
        require(
            parallel == 1 or self.num_gpus == 1, "rollout.tensor_parallel_size", parallel, "needs rollout.num_gpus=1"
        )
        require(
            0 < self.gpu_memory_fraction <= 1,
            "rollout.gpu_memory_fraction",
            self.gpu_memory_fraction,
            "a share above 0, at most 1",
        )

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest episode an engine must hold: prompt and completion of the last turn."""
        return self.max_prompt_tokens + self.max_turn_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """R = R_accuracy + R_format - P_control (VisionThink, Eq. 4 and 5)."""

    accuracy_weight: float = 1.0
    """Reward of a right answer."""
    format_weight: float = 0.5
    """Reward when every turn is well formed."""
    penalty: Literal["threshold", "always", "never"] = "threshold"
    """`threshold`: Eq. 5. `always`: asking always costs. `never`: nothing does (Fig. 3a)."""
    penalty_weight: float = 0.1
    """P_control when it applies."""
    theta: float = 0.2
    """Share of right answers given directly below which direct answers are penalised."""
    applies_to: Literal["correct", "all"] = "correct"
    """`correct`: right answers alone pay the penalty (published code). `all`: Eq. 5 read literally."""

    def __post_init__(self) -> None:
        for name in ("accuracy_weight", "format_weight", "penalty_weight"):
            require(getattr(self, name) >= 0, f"reward.{name}", getattr(self, name), "0 or more")
        require(0 <= self.theta <= 1, "reward.theta", self.theta, "a share from 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerConfig:
    num_ranks: int = 1
    """Data-parallel ranks of the learner."""
    num_gpus: float = 0.0
    """GPUs (or a share of one) per rank; 0 trains on the CPU over gloo."""
    num_threads: int = 2
    """PyTorch threads of a CPU rank."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage."""
    param_persistence_threshold: int = 100_000
    """Under ZeRO-3, parameters of up to this many elements are kept whole on every rank; 0 shards all of them."""
    offload_optimizer: bool = False
    """Keep the optimizer's state in host memory (ZeRO 1-3 on GPUs)."""
    learning_rate: float = 2e-4
    """Constant after the warm-up."""
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises linearly from 0."""
    adam_betas: tuple[float, float] = (0.9, 0.95)
    """Decay of Adam's running means of the gradient and of its square."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW)."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    prompts_per_mini_batch: int = 32
    """Prompts (groups) per optimizer step."""
    max_tokens_per_micro_batch: int = 8192
    """Token budget, padding included, of one forward and backward pass on a rank."""
    clip_low: float = 0.2
    """Probability ratios are clipped below at 1 - clip_low."""
    clip_high: float = 0.2
    """And above at 1 + clip_high."""
    kl_coefficient: float = 0.001
    """Weight of the k3 KL estimate to the frozen reference policy; 0 keeps no reference in memory."""
    entropy_coefficient: float = 0.001
    """Weight of the entropy bonus."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    max_skipped_updates: int = 3
    """Stop after this many optimizer steps in a row with a non-finite loss or gradient."""
    update_timeout_s: float = 1800.0
    """Deadline for one update on all ranks."""

    def __post_init__(self) -> None:
        for name in (
            "num_ranks",
            "num_threads",
            "prompts_per_mini_batch",
            "max_tokens_per_micro_batch",
            "max_skipped_updates",
        ):
            require(getattr(self, name) >= 1, f"learner.{name}", getattr(self, name), "at least 1")
        for name in ("learning_rate", "max_grad_norm", "update_timeout_s"):
            require(getattr(self, name) > 0, f"learner.{name}", getattr(self, name), "above 0")
        for name in (
            "kl_coefficient",
            "entropy_coefficient",
            "warmup_steps",
            "weight_decay",
            "num_gpus",
            "param_persistence_threshold",
        ):
            require(getattr(self, name) >= 0, f"learner.{name}", getattr(self, name), "0 or more")
        for name in ("clip_low", "clip_high"):
            require(getattr(self, name) > 0, f"learner.{name}", getattr(self, name), "above 0")
        betas = self.adam_betas
        require(all(0 <= beta < 1 for beta in betas), "learner.adam_betas", betas, "two numbers from 0 to below 1")
        require(
            not (self.offload_optimizer and self.zero_stage == 0),
            "learner.offload_optimizer",
            True,
            "needs learner.zero_stage 1, 2 or 3",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsConfig:
    timeout_s: float = 120.0
    """Deadline for one version to reach every rollout worker."""
    bucket_mib: int = 512
    """Weights travel in buckets of about this size."""

    def __post_init__(self) -> None:
        require(self.timeout_s > 0, "weights.timeout_s", self.timeout_s, "a positive number of seconds")
        require(self.bucket_mib >= 1, "weights.bucket_mib", self.bucket_mib, "at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    num_steps: int = 20
    """Trips of the main loop: collect, update, publish."""
    prompts_per_step: int = 32
    """Groups trained on per trip."""
    max_staleness: int = 0
    """Trips of the loop that generation may run ahead of learning; 0 is strictly on-policy."""
    min_scored: int = 4
    """A group trains while at least this many of its G episodes have a verdict."""
    max_draws: float = 2.0
    """Prompts drawn per step, as a multiple of `prompts_per_step`, before a step goes on with fewer groups."""
    max_lost_fraction: float = 0.25
    """Stop when more than this share of a step's groups was lost to failures."""
    checkpoint_every: int = 5
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept."""
    eval_every: int = 0
    """Steps between evaluations of the held-out split; 0 evaluates at the end alone."""
    stop_without_signal: int = 0
    """End the run after this many steps in a row in which fewer than a quarter of the wanted groups had a signal; 0
    goes on to `num_steps`."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "prompts_per_step", "min_scored", "checkpoint_every", "keep_checkpoints"):
            require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "at least 1")
        require(self.max_staleness >= 0, "train.max_staleness", self.max_staleness, "0 (on-policy) or more")
        for name in ("eval_every", "stop_without_signal"):
            require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "0 or more")
        require(1 <= self.max_draws <= 100, "train.max_draws", self.max_draws, "from 1 to 100 times prompts_per_step")
        require(
            0 <= self.max_lost_fraction <= 1, "train.max_lost_fraction", self.max_lost_fraction, "a share from 0 to 1"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    num_samples: int = 200
    """Rows of the split that an evaluation plays; 0 plays all."""

    def __post_init__(self) -> None:
        require(
            self.num_samples >= 0, "eval.num_samples", self.num_samples, "0 for the whole split, or a number of rows"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        mini_batch, per_step = self.learner.prompts_per_mini_batch, self.train.prompts_per_step
        require(
            per_step % mini_batch == 0,
            "learner.prompts_per_mini_batch",
            mini_batch,
            f"must divide train.prompts_per_step={per_step}",
        )
        require(
            self.train.min_scored <= self.rollout.group_size,
            "train.min_scored",
            self.train.min_scored,
            f"at most rollout.group_size={self.rollout.group_size}",
        )
        on_cpu = self.rollout.num_gpus == 0 or self.learner.num_gpus == 0
        require(
            not (on_cpu and self.model.dtype != "float32"),
            "model.dtype",
            self.model.dtype,
            "the CPU engines need float32; give rollout.num_gpus and learner.num_gpus",
        )
        full_precision = self.model.dtype == "float32"
        require(full_precision or self.learner.zero_stage > 0, "learner.zero_stage", 0, "bfloat16 needs 1, 2 or 3")
        longest = self.rollout.max_model_len
        budget = self.learner.max_tokens_per_micro_batch
        require(
            budget >= longest,
            "learner.max_tokens_per_micro_batch",
            budget,
            f"one episode may be {longest} tokens long (rollout.max_prompt_tokens + rollout.max_turn_tokens)",
        )
