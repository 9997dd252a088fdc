"""Settings of the learner and of the weight sync to the rollout workers."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Literal

from configs.objectives import (
    OBJECTIVES,
    Advantage,
    Aggregation,
    Correction,
    KLEstimator,
    Name,
    Objective,
    Surrogate,
)
from configs.ranges import Range, parse_range
from configs.require import require


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    rank: int = 0
    """Rank of the low-rank adapters that are trained in place of the weights, which are frozen; 0 trains the weights.
    Adapters lie beside the linear layers of the language model, and with `learner.train_vision` of the vision tower.
    They take about ten times the learning rate. Rollout workers and exports get whole weights with the adapters added,
    and the weights without them are the reference policy."""
    alpha: float = 32.0
    """Adapters count with alpha / rank."""
    target: Literal["attention", "all"] = "all"
    """Which linear layers have adapters: those of attention, or those of the MLPs, too."""

    def __post_init__(self) -> None:
        require(self.rank >= 0, "learner.lora.rank", self.rank, "must be at least 0")
        require(self.alpha > 0, "learner.lora.alpha", self.alpha, "must be above 0")

    @property
    def scale(self) -> float:
        """Factor of what adapters add."""
        return self.alpha / self.rank if self.rank else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerConfig:
    num_ranks: int | str = 1
    """Number of data-parallel learner ranks, or MIN..MAX: training starts with MIN of them, the others join when they
    are up, and a lost one costs at most the step in flight."""
    num_spares: int = 0
    """Further processes that are started, with the resources of a rank each, and take the place of a lost rank at once.
    Without one the learner goes on with fewer ranks until a new process has loaded its libraries."""
    num_gpus: float = 0.0
    """GPUs (may be fractional) per rank; 0 trains on CPU over gloo."""
    num_threads: int = 2
    """PyTorch threads of a CPU rank."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage."""
    param_persistence_threshold: int = 100_000
    """Under ZeRO-3, parameters with at most this many elements are not partitioned; 0 partitions all of them."""
    offload_optimizer: bool = False
    """Offload the optimizer state to host memory (ZeRO 1-3 on GPUs)."""
    offload_reference: bool = False
    """Keep the reference policy in host memory, sharded over the ranks, and bring it to the GPU layer by layer."""
    learning_rate: float = 2e-4
    """Learning rate, constant after warm-up."""
    warmup_steps: int = 0
    """Optimizer steps of linear learning-rate warm-up from 0."""
    adam_betas: tuple[float, float] = (0.9, 0.95)
    """Beta1 and beta2 of Adam."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW)."""
    max_grad_norm: float = 1.0
    """Gradient-norm clipping threshold."""
    prompts_per_mini_batch: int = 32
    """Prompts (groups) per optimizer step."""
    stream: bool = False
    """Learn from groups while others of their step are still played or judged. Hides the learner behind the slowest
    groups if it has devices of its own. With `train.max_staleness` above 0 steps are whole before they are learned
    from, and this changes nothing."""
    max_tokens_per_micro_batch: int = 8192
    """Token budget of a micro-batch (one forward and backward pass on a rank). Nothing is padded, and the tokens that
    the episodes of a group share count once."""
    max_tokens_per_vision_pass: int = 4096
    """Visual tokens that the vision tower encodes at a time, with all activations kept in its backward pass. A larger
    picture is recomputed block by block. Groups with that many visual tokens are learned from at a time; where a group
    has more, or with gradient checkpointing and no room, they are encoded once more for the backward pass."""
    train_vision: bool = True
    """Whether the vision tower is trained; a frozen one has no gradient and no optimizer state."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    objective: Name = "grpo"
    """What an update maximizes (docs/objectives.md): `grpo` (the paper), `dr_grpo`, `dapo`, `gspo`, `cispo`, `rloo`,
    `dtpo`. Each is a choice of the settings below that are null; what is set there replaces it."""
    advantage: Advantage | None = None
    """Baseline and scale of rewards within a group. `std`: minus the mean, over the standard deviation. `mean`: minus
    the mean. `leave_one_out`: minus the mean of the others. null: that of the objective (`std`)."""
    aggregation: Aggregation | None = None
    """How tokens are averaged: `episode_mean` over each episode, then the group; `group_tokens` over all tokens of a
    group; `batch_tokens` over all tokens of a mini-batch; `group_turns` over the last turns of a group, and with half
    the weight over the turns before them; `fixed_length` divides the sum over an episode by `length_normalizer`,
    `episode_sum` by nothing. Then over groups. null: that of the objective (`episode_mean`)."""
    surrogate: Surrogate | None = None
    """`clip`: PPO's clipped ratio of each token. `clip_episode`: of the geometric mean over the tokens of an episode.
    `weighted_logprob`: log-probabilities weighted by the clipped ratio. null: that of the objective (`clip`)."""
    clip_low: float | None = None
    """Lower clip range: the probability ratio is clipped at 1 - clip_low. null: that of the objective (0.2)."""
    clip_high: float | None = None
    """Upper clip range: the probability ratio is clipped at 1 + clip_high. null: that of the objective (0.2)."""
    length_normalizer: int = 96
    """With `aggregation=fixed_length`: tokens that an episode can generate, rollout.max_turn_tokens times turns."""
    turn_credit: float | None = None
    """Weight of the group-relative advantage of a tool call's own reward, which the tokens of the first turn get on top
    of their episode's advantage (DTPO). null: that of the objective (0)."""
    recompute_logprobs: bool = False
    """On-policy, take the ratio to the learner's own log-probabilities before the update instead of the sampler's, and
    correct for the difference by `importance_correction`. Always so with `train.max_staleness` above 0. Costs a
    forward pass for each mini-batch of a step but the first."""
    importance_correction: Correction = "truncate"
    """What is done with the importance weight of a token, the ratio of its probabilities under the policy before the
    update and under the one that sampled it. `truncate`: capped (truncated importance sampling). `mask_tokens`: 0
    outside `importance_band` (IcePop). `mask_episodes`: 0 for episodes whose geometric mean lies outside, capped for
    others. Applies with `train.max_staleness` above 0 or `recompute_logprobs`."""
    importance_sampling_cap: float = 2.0
    """Cap of the importance weight of a token."""
    importance_band: tuple[float, float] = (0.5, 5.0)
    """Least and greatest importance weight that is not masked."""
    kl_coefficient: float | None = None
    """Coefficient of the KL to the frozen reference policy; 0 loads no reference model. null: that of the objective
    (0.001)."""
    kl_estimator: KLEstimator | None = None
    """Estimate of that KL in the loss, x being the log-ratio of the reference to the policy: `k1` = -x, `k2` = x^2/2,
    `k3` = exp(x) - x - 1. null: that of the objective (`k3`)."""
    entropy_coefficient: float = 0.001
    """Coefficient of the entropy bonus."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass, which saves memory: those of the vision tower and of as many layers
    of the language model as the GPU has no room for. On a CPU and under ZeRO-3 those of all layers."""
    compile: bool = True
    """Compile chains of elementwise operations into single kernels (torch.compile) on GPUs: the first update takes 15
    seconds longer, later ones less time. Needs a C compiler; without one they run one by one."""
    max_skipped_updates: int = 3
    """Stop after this many consecutive optimizer steps with a non-finite loss or gradient."""
    update_timeout_s: float = 1800.0
    """Timeout for one update on all ranks, with `stream` for each part of it; also for missing ranks to come back."""
    stall_timeout_s: float = 60.0
    """A rank is restarted if it does not answer for this long, or during an update finishes no pass over a micro-batch
    for this long. The first update of a process may take five times as long for a pass, for compilation."""
    copy_state: bool = True
    """After each update, copy every rank's share of the state to host memory: its own, and that of another node if
    there is one. A lost rank then costs the step in flight, and a run that is stopped saves its last finished step.
    Without copies a lost rank ends the run, ranks join at its start only, and only steps of `train.checkpoint_every`
    are saved. A rank holds up to three copies of its share, 12 bytes per parameter each."""

    def __post_init__(self) -> None:
        for name in (
            "num_threads",
            "prompts_per_mini_batch",
            "max_tokens_per_micro_batch",
            "max_tokens_per_vision_pass",
            "max_skipped_updates",
            "length_normalizer",
        ):
            require(getattr(self, name) >= 1, f"learner.{name}", getattr(self, name), "must be at least 1")
        parse_range("learner.num_ranks", self.num_ranks)
        for name in ("learning_rate", "max_grad_norm", "update_timeout_s", "stall_timeout_s"):
            require(getattr(self, name) > 0, f"learner.{name}", getattr(self, name), "must be above 0")
        for name in (
            "entropy_coefficient",
            "warmup_steps",
            "weight_decay",
            "num_gpus",
            "param_persistence_threshold",
            "num_spares",
        ):
            require(getattr(self, name) >= 0, f"learner.{name}", getattr(self, name), "must be at least 0")
        self._check_objective()
        betas = self.adam_betas
        require(
            all(0 <= beta < 1 for beta in betas),
            "learner.adam_betas",
            betas,
            "must be two numbers, at least 0 and below 1",
        )
        require(
            not (self.offload_optimizer and self.zero_stage == 0),
            "learner.offload_optimizer",
            True,
            "must be false with learner.zero_stage=0; set learner.zero_stage to 1, 2 or 3",
        )
        require(
            not (self.offload_reference and self.lora.rank),
            "learner.offload_reference",
            True,
            "must be false with learner.lora.rank above 0: the frozen weights are the reference, there are no others",
        )

    def _check_objective(self) -> None:
        chosen = self.chosen_objective
        for name in ("kl_coefficient", "turn_credit"):
            require(getattr(chosen, name) >= 0, f"learner.{name}", getattr(chosen, name), "must be at least 0")
        for name in ("clip_low", "clip_high"):
            require(getattr(chosen, name) > 0, f"learner.{name}", getattr(chosen, name), "must be above 0")
        cap = self.importance_sampling_cap
        require(
            cap >= 1, "learner.importance_sampling_cap", cap, "must be at least 1, the weight of an on-policy token"
        )
        low, high = self.importance_band
        require(
            0 <= low < 1 < high,
            "learner.importance_band",
            list(self.importance_band),
            "must be two numbers around 1, the weight of an on-policy token, as in [0.5,5]",
        )

    def check_run(
        self, *, max_turn_tokens: int, has_several_mini_batches: bool, is_streamed: bool, is_stale: bool
    ) -> None:
        """Check the objective against the other sections.

        Raises:
            ValueError: they do not go together.
        """
        aggregation = self.chosen_objective.aggregation
        require(
            not (is_streamed and aggregation == "batch_tokens"),
            "learner.aggregation",
            aggregation,
            "must be group_tokens with learner.stream, which learns before the tokens of a mini-batch can be counted; "
            "or set learner.stream=false",
        )
        require(
            aggregation != "fixed_length" or self.length_normalizer >= max_turn_tokens,
            "learner.length_normalizer",
            self.length_normalizer,
            f"must be at least rollout.max_turn_tokens={max_turn_tokens}: it is what an episode can generate",
        )
        require(
            self.importance_correction == "truncate" or is_stale or self.recompute_logprobs,
            "learner.importance_correction",
            self.importance_correction,
            "must be truncate where no importance weight differs from 1; set learner.recompute_logprobs=true to "
            "compare the learner with the sampler on-policy",
        )
        require(
            not (is_streamed and self.recompute_logprobs and has_several_mini_batches),
            "learner.recompute_logprobs",
            True,
            "must be false with learner.stream and several mini-batches per step, whose log-probabilities are needed "
            "before the first of them is learned from; or set learner.stream=false",
        )

    @property
    def chosen_objective(self) -> Objective:
        """The objective of this name, with the settings that replace or complete its choices."""
        mine = {field.name: getattr(self, field.name) for field in fields(Objective)}
        return replace(OBJECTIVES[self.objective], **{name: value for name, value in mine.items() if value is not None})

    @property
    def ranks(self) -> Range:
        """`num_ranks`, parsed."""
        return parse_range("learner.num_ranks", self.num_ranks)

    @property
    def shards_reference(self) -> bool:
        """Whether a reference policy is sharded over the ranks, and gathered layer by layer in its forward pass."""
        has_own = self.chosen_objective.kl_coefficient > 0 and not self.lora.rank
        return has_own and (self.zero_stage == 3 or self.offload_reference)


Transport = Literal["shared_memory", "nccl", "ipc"]
InFlight = Literal["drain", "keep", "recompute"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsConfig:
    transport: Literal["auto", "shared_memory", "nccl", "ipc"] = "auto"
    """How weights reach the rollout workers. `auto`: NCCL between GPUs, CUDA IPC where all share one, shared memory on
    CPU and where some GPUs are shared. `shared_memory` works everywhere; between nodes through Ray's object store."""
    timeout_s: float = 120.0
    """Timeout of each phase of a weight sync: connecting, sending and receiving, committing."""
    in_flight: Literal["drain", "keep", "recompute"] = "drain"
    """Turns in flight when a version arrives. `drain`: new turns wait until they have ended. `keep`: they go on under
    the new weights with the KV cache that they have. `recompute`: they go on, and their KV cache is recomputed. There
    are such turns only with `train.max_staleness` above 0."""
    bucket_mib: int = 512
    """Maximum size of the buckets in which weights are sent; the learner needs two of them beside the model."""

    def __post_init__(self) -> None:
        require(self.timeout_s > 0, "weights.timeout_s", self.timeout_s, "must be above 0")
        require(self.bucket_mib >= 1, "weights.bucket_mib", self.bucket_mib, "must be at least 1")
