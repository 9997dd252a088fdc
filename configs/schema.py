"""All settings of a run, as frozen dataclasses. The docstrings are the reference: `visionthink config --fields`.

Each section validates itself, `Config` validates across sections, and a worker receives its own section only. An
invalid value is rejected here, before any process starts, with the field, the value and the remedy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from configs.judges import JudgeConfig
from configs.learner import LearnerConfig, Transport, WeightsConfig
from configs.ranges import Range, parse_range
from configs.require import require
from configs.rewards import RewardConfig
from configs.run import RunConfig
from configs.tools import ToolsConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    path: str = "configs/tiny"
    """Hugging Face folder with config.json, safetensors and tokenizer (Qwen2.5-VL or Qwen3-VL), or a name on the Hub:
    `org/name` or `org/name@revision`."""
    load: Literal["weights", "random"] = "weights"
    """`weights` loads the checkpoint. `random` initializes from config.json alone, to measure speed and memory."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the engine's weights and of the learner's forward pass. CPU runs need float32."""
    prompt: str = "tiny"
    """Prompt template: `tiny`, `qwen`, or the path of a YAML file with the same keys."""
    min_pixels: int = 56 * 56
    """Minimum pixels of the full view."""
    max_pixels: int = 224 * 224
    """Maximum pixels of the full view; a larger image is scaled down."""

    def __post_init__(self) -> None:
        require(self.min_pixels > 0, "model.min_pixels", self.min_pixels, "must be above 0")
        require(
            self.max_pixels >= self.min_pixels,
            "model.max_pixels",
            self.max_pixels,
            f"must be at least model.min_pixels={self.min_pixels}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnsConfig:
    """Where a set of another layout has what an episode needs. Empty: the columns of the published VisionThink sets."""

    question: str = ""
    """A path (`question`, `conversations.0.value`), or a text with paths in braces: `{question}\\n{choices}` lists
    choices by letter. Default: `problem`."""
    image: str = ""
    """Path of the picture. Default: `images` or `image`."""
    answer: str = ""
    """A path or a text, as for the question: `answers.*.answer`, `{answer|letter}` for the index of a choice,
    `{answers|most}` for the most frequent one. Default: `original_answer` or `answer`."""
    needs_full: str = ""
    """Path of a boolean: whether the full view is needed. Default: `info.use_tool`."""
    needs: str = ""
    """Path of a text that says more: the least that must be seen, `quarter`, `region` or `full`. Default: `info.needs`,
    where there is one."""
    region: str = ""
    """Path of a region that must be seen: four numbers, left, top, right and bottom as fractions of the picture's
    sides. Default: `info.region`, where there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    train: str = "data/shapes/train.parquet"
    """Training set: a Parquet file, a folder or glob (`folder/train-*`) of them, a `save_to_disk` folder, or a name on
    the Hub: `hf://org/name[@revision][/split, folder, file or glob]`."""
    heldout: str = "data/shapes/heldout.parquet"
    """Held-out set for evaluation, in the same formats."""
    max_skipped_fraction: float = 0.01
    """Stop when more than this fraction of the rows read so far (and at least 10 rows) was unusable."""
    max_source_pixels: int = 64_000_000
    """Skip images whose header declares more pixels than this."""
    max_side_ratio: float = 100.0
    """Skip images whose longer side is more than this many times the shorter side."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)

    def columns_of(self, path: str) -> ColumnsConfig:
        """`columns`, for the two sets that are set here; other sets have the published columns."""
        return self.columns if path in (self.train, self.heldout) else ColumnsConfig()

    def __post_init__(self) -> None:
        require(
            0 <= self.max_skipped_fraction <= 1,
            "data.max_skipped_fraction",
            self.max_skipped_fraction,
            "must be from 0 to 1",
        )
        require(self.max_source_pixels > 0, "data.max_source_pixels", self.max_source_pixels, "must be above 0")
        require(self.max_side_ratio >= 1, "data.max_side_ratio", self.max_side_ratio, "must be at least 1")


TIMES = ("group_timeout_s", "start_timeout_s", "progress_timeout_s", "restart_window_s", "wait_timeout_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig:
    mode: Literal["efficient", "general"] = "efficient"
    """`efficient`: quarter view first, with tools. `general`: full view, one turn, no tools."""
    group_size: int = 8
    """Episodes per prompt (G in GRPO)."""
    temperature: float = 1.0
    """Sampling temperature in training. Evaluation is greedy."""
    max_turn_tokens: int = 48
    """Maximum tokens generated per turn."""
    max_prompt_tokens: int = 512
    """Maximum prompt tokens of a turn, visual tokens included; an episode that would exceed it ends as truncated."""
    num_workers: int | str = 1
    """Number of rollout workers, one vLLM engine each: a number, or MIN..MAX. MAX workers are requested from the
    cluster; the run starts once MIN are up, and the others join later."""
    num_spares: int = 0
    """Further processes that have loaded their libraries, with the resources of a worker each but no engine: one takes
    the place of a lost worker. On GPUs, where an engine's own start takes longer, one more worker serves better."""
    max_groups_in_flight: int = 16
    """Maximum groups that one worker generates concurrently."""
    group_timeout_s: float = 600.0
    """Timeout for the rollout of one group."""
    start_timeout_s: float = 900.0
    """Timeout for an engine to start, from the moment that the cluster has room for it."""
    progress_timeout_s: float = 60.0
    """A worker with groups in flight that generates nothing for this long is killed and replaced."""
    drain_timeout_s: float = 120.0
    """A worker that is asked to leave may finish its groups for this long; the others are played again elsewhere."""
    max_restarts: int = 3
    """Times that one worker may be started again within `restart_window_s`, with growing pauses."""
    restart_window_s: float = 600.0
    """See `max_restarts`."""
    when_none_left: Literal["wait", "stop"] = "wait"
    """When all workers have failed and none may be started again: wait up to `wait_timeout_s`, or stop at once."""
    wait_timeout_s: float = 1800.0
    """Longest time the run waits while fewer workers than it needs are up or starting."""
    wait_for_nodes: Literal["auto", "always", "never"] = "auto"
    """Whether to wait for nodes if the cluster has too few resources now; `auto`: if it has an autoscaler."""
    num_gpus: float = 0.0
    """GPUs (may be fractional) per engine process; 0 uses vLLM's CPU build."""
    gpu_memory_fraction: float = 0.85
    """Fraction of GPU memory that vLLM may use (gpu_memory_utilization)."""
    tensor_parallel_size: int = 1
    """Tensor-parallel size of one engine; each process has one GPU."""
    kv_cache_gib: int = 1
    """KV cache of a CPU engine, in GiB."""
    num_threads: int = 1
    """OpenMP threads of a CPU engine. One is fastest for small models, as more contend with each other."""
    max_prefill_tokens: int = 0
    """Prompt tokens per engine step (max_num_batched_tokens); 0 derives it from the model and the GPU memory."""
    enforce_eager: bool = True
    """Skip CUDA graphs and compilation: slower generation, much faster start."""
    tools: ToolsConfig = field(default_factory=ToolsConfig)

    def __post_init__(self) -> None:
        require(
            self.group_size >= 2,
            "rollout.group_size",
            self.group_size,
            "must be at least 2: advantages are relative to the group",
        )
        require(
            0 < self.temperature <= 2,
            "rollout.temperature",
            self.temperature,
            "must be above 0 in training, as `visionthink eval` is greedy, and at most 2, the engine's limit",
        )
        for name in (
            "max_turn_tokens",
            "max_prompt_tokens",
            "max_groups_in_flight",
            "tensor_parallel_size",
            "kv_cache_gib",
            "num_threads",
        ):
            require(getattr(self, name) >= 1, f"rollout.{name}", getattr(self, name), "must be at least 1")
        parse_range("rollout.num_workers", self.num_workers)
        for name in TIMES:
            require(getattr(self, name) > 0, f"rollout.{name}", getattr(self, name), "must be above 0")
        for name in ("drain_timeout_s", "max_restarts", "num_spares"):
            require(getattr(self, name) >= 0, f"rollout.{name}", getattr(self, name), "must be at least 0")
        most = self.max_prefill_tokens
        require(most >= 0, "rollout.max_prefill_tokens", most, "must be at least 0; 0 chooses automatically")
        require(self.num_gpus >= 0, "rollout.num_gpus", self.num_gpus, "must be at least 0; 0 means CPU")
        parallel = self.tensor_parallel_size
        require(
            parallel == 1 or self.num_gpus == 1,
            "rollout.tensor_parallel_size",
            parallel,
            "must be 1 unless rollout.num_gpus=1",
        )
        require(
            0 < self.gpu_memory_fraction <= 1,
            "rollout.gpu_memory_fraction",
            self.gpu_memory_fraction,
            "must be above 0 and at most 1",
        )

    @property
    def workers(self) -> Range:
        """`num_workers` as a range."""
        return parse_range("rollout.num_workers", self.num_workers)

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest episode: prompt and completion of the last turn."""
        return self.max_prompt_tokens + self.max_turn_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    num_steps: int = 20
    """Training steps: rollouts and judging, update, weight sync."""
    prompts_per_step: int = 32
    """Groups to train on per step."""
    max_staleness: int = 0
    """Steps that rollouts may run ahead of the learner; 0 is strictly on-policy."""
    min_scored: int = 4
    """Minimum episodes with a verdict in a group; a group with fewer is lost."""
    max_draws: float = 2.0
    """Maximum prompts drawn per step, as a multiple of `prompts_per_step`; then the step uses the groups it has."""
    max_lost_fraction: float = 0.25
    """Stop when more than this fraction of a step's groups was lost to failures."""
    checkpoint_every: int = 5
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Number of most recent checkpoints to keep."""
    keep_checkpoint_every: int = 0
    """Keep the checkpoints of steps that are multiples of this as well; 0 keeps only the most recent ones."""
    checkpoint_dir: str = ""
    """Folder or fsspec URL (`s3://bucket/path`) for checkpoints, in a subfolder named after the run; empty is
    RUN/checkpoints. Ranks on several nodes need one that all of them reach."""
    save_timeout_s: float = 600.0
    """Timeout for a checkpoint to be written, beside the training."""
    max_failed_saves: int = 0
    """Stop after this many checkpoints in a row that could not be written; 0 goes on whatever happens."""
    eval_every: int = 0
    """Steps between evaluations on the held-out split; 0 evaluates only at the end."""
    stop_without_signal: int = 0
    """End the run after this many consecutive steps with fewer than a quarter of `prompts_per_step` trained groups (all
    others had zero variance); 0 always runs to `num_steps`."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "prompts_per_step", "min_scored", "checkpoint_every", "keep_checkpoints"):
            require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "must be at least 1")
        require(
            self.max_staleness >= 0, "train.max_staleness", self.max_staleness, "must be at least 0; 0 is on-policy"
        )
        require(self.save_timeout_s > 0, "train.save_timeout_s", self.save_timeout_s, "must be above 0")
        for name in ("eval_every", "stop_without_signal", "keep_checkpoint_every", "max_failed_saves"):
            require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "must be at least 0")
        require(1 <= self.max_draws <= 100, "train.max_draws", self.max_draws, "must be from 1 to 100")
        require(
            0 <= self.max_lost_fraction <= 1, "train.max_lost_fraction", self.max_lost_fraction, "must be from 0 to 1"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    num_samples: int = 200
    """Number of held-out rows to evaluate on; 0 uses all."""

    def __post_init__(self) -> None:
        require(
            self.num_samples >= 0, "eval.num_samples", self.num_samples, "must be at least 0; 0 uses the whole split"
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
            f"must be at most rollout.group_size={self.rollout.group_size}",
        )
        on_cpu = self.rollout.num_gpus == 0 or self.learner.num_gpus == 0
        require(
            not (on_cpu and self.model.dtype != "float32"),
            "model.dtype",
            self.model.dtype,
            "must be float32 on CPU; for bfloat16 set rollout.num_gpus and learner.num_gpus",
        )
        full_precision = self.model.dtype == "float32"
        require(
            full_precision or self.learner.zero_stage > 0, "learner.zero_stage", 0, "must be 1, 2 or 3 with bfloat16"
        )
        require(
            self.weights.transport in ("auto", "shared_memory") or not on_cpu,
            "weights.transport",
            self.weights.transport,
            "must be auto or shared_memory on CPU",
        )
        require(
            self.weights.transport != "ipc" or self._num_gpus <= 1,
            "weights.transport",
            "ipc",
            f"must be auto unless all share one GPU: they take {self._num_gpus:g}",
        )
        require(
            not (self.learner.stream and self.engines_sleep),
            "learner.stream",
            True,
            "must be false where engines sleep during updates: with the learner on their GPU and "
            f"weights.transport={self.weights.transport}",
        )
        self.learner.check_run(
            max_turn_tokens=self.rollout.max_turn_tokens,
            has_several_mini_batches=per_step > mini_batch,
            is_streamed=self.streams_updates,
            is_stale=self.train.max_staleness > 0,
        )
        longest = self.rollout.max_model_len
        budget = self.learner.max_tokens_per_micro_batch
        require(
            budget >= longest,
            "learner.max_tokens_per_micro_batch",
            budget,
            f"must be at least rollout.max_prompt_tokens + rollout.max_turn_tokens = {longest}, the longest episode",
        )

    @property
    def transport(self) -> Transport:
        """How weights reach the rollout workers, `weights.transport` resolved."""
        if self.weights.transport != "auto":
            return self.weights.transport
        if self.rollout.num_gpus == 0 or self.learner.num_gpus == 0:
            return "shared_memory"
        if self._num_gpus <= 1:
            return "ipc"
        # NCCL refuses two members on one GPU.
        return "nccl" if min(self.rollout.num_gpus, self.learner.num_gpus) > 0.5 else "shared_memory"

    @property
    def _num_gpus(self) -> float:
        """That all rollout workers and learner ranks take together."""
        rollout, learner = self.rollout, self.learner
        per_worker = rollout.num_gpus * rollout.tensor_parallel_size
        num_ranks = learner.ranks.maximum + learner.num_spares
        return (rollout.workers.maximum + rollout.num_spares) * per_worker + num_ranks * learner.num_gpus

    @property
    def engines_sleep(self) -> bool:
        """Whether engines free the GPU that they share with the learner during updates; only if they are idle then."""
        return self.transport == "ipc" and self.train.max_staleness == 0

    @property
    def corrects_importance(self) -> bool:
        """Whether the ratio is taken to the learner's own log-probabilities, and theirs to the sampler's corrected."""
        return self.train.max_staleness > 0 or self.learner.recompute_logprobs

    @property
    def streams_updates(self) -> bool:
        """Whether the learner works on a batch that is still being collected."""
        return self.learner.stream and self.train.max_staleness == 0
