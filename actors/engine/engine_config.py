"""How a vLLM engine of ours is set up: its environment, its arguments, and what no argument of vLLM's says."""

from __future__ import annotations

import os
from typing import Any

from actors.engine.budget import TokenBudget, most_turns
from actors.engine.owner import own_engines
from configs.learner import Transport
from configs.schema import ModelConfig, RolloutConfig

CPU_BLOCK_TOKENS = 32
"""Tokens per block of a CPU engine's KV cache, the fewest that vLLM takes there. Prefixes are shared in whole blocks:
with the 128 tokens that are vLLM's default on a CPU (16 on a GPU), short prompts would share nothing."""


def set_engine_environment(config: RolloutConfig) -> None:
    """Set environment variables that vLLM reads at import. Existing settings of the user take precedence."""
    own_engines()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if config.num_gpus == 0:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(config.kv_cache_gib))
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ["OMP_NUM_THREADS"] = str(config.num_threads)
        if config.enforce_eager:
            # vLLM compiles how it ranks log-probabilities all the same: seconds of the first turns, for one comparison.
            os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


def engine_config(
    model: ModelConfig,
    rollout: RolloutConfig,
    budget: TokenBudget,
    *,
    extension: str,
    transport: Transport,
    can_sleep: bool,
    seed: int,
) -> Any:
    from vllm import AsyncEngineArgs
    from vllm.config import WeightTransferConfig

    from actors.engine.transfer import backend
    from actors.engine.vllm_scheduler import LogprobsLastAsyncScheduler, LogprobsLastScheduler

    on_gpu = {"gpu_memory_utilization": rollout.gpu_memory_fraction}
    memory = on_gpu if rollout.num_gpus > 0 else {"block_size": CPU_BLOCK_TOKENS}
    config = AsyncEngineArgs(
        model=model.path,
        tokenizer=model.path,
        dtype=model.dtype,
        load_format="dummy" if model.load == "random" else "auto",
        max_model_len=rollout.max_model_len,
        max_num_seqs=most_turns(rollout),
        max_num_batched_tokens=budget.per_step,
        limit_mm_per_prompt={"image": rollout.tools.max_turns, "video": 0},
        # Views are cut before they get here: bounds so wide that the processor never resizes one.
        mm_processor_kwargs={"min_pixels": 1, "max_pixels": model.max_pixels},
        enforce_eager=rollout.enforce_eager,
        tensor_parallel_size=rollout.tensor_parallel_size,
        logprobs_mode="processed_logprobs",
        generation_config="vllm",
        worker_extension_cls=extension,
        enable_sleep_mode=can_sleep,
        weight_transfer_config=WeightTransferConfig(backend=backend(transport)),
        seed=seed,
        disable_log_stats=True,
        **memory,
    ).create_engine_config()
    # No argument of vLLM's sets these two: it derives them from max_num_batched_tokens and keeps what is set here.
    config.scheduler_config.max_num_encoder_input_tokens = budget.encoder_per_step
    config.scheduler_config.encoder_cache_size = budget.encoder_cache
    # Only now is it decided whether a step is scheduled while the one before runs.
    is_async = config.scheduler_config.async_scheduling
    config.scheduler_config.scheduler_cls = LogprobsLastAsyncScheduler if is_async else LogprobsLastScheduler
    if rollout.num_gpus == 0 and rollout.tensor_parallel_size == 1:
        # On a CPU vLLM gives the model a process beside the scheduler's, to bind its threads to cores, which ours are
        # not. The two poll each other all the time: two processes, and a third of the speed on two cores.
        config.parallel_config.distributed_executor_backend = "uni"
    return config


def gpu_memory() -> int:
    """Memory in bytes of the GPU assigned to this process."""
    from vllm.platforms import current_platform

    return int(current_platform.get_device_total_memory())
