"""vLLM behind the `Generate` protocol. With `vllm_extension.py`, the only code that uses vLLM (0.26 to 0.33).

Token ids go in and come out. Log-probabilities are those of the distribution that was sampled from: after temperature
and after the vision tokens were ruled out. A turn is sampled under one version of the weights: a commit waits until
the turns in flight have ended, and holds new ones back meanwhile.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from actors.engine.budget import ModelWidths, TokenBudget, most_turns, token_budget
from actors.engine.gate import TurnGate
from actors.engine.owner import own_engines
from actors.engine.staging import staging_root, write_buckets
from actors.engine.weight_receiver import WeightManifest, check_engine_digests, manifest_to_json
from actors.episode import FinishReason
from actors.errors import RolloutError, SampleError
from actors.images import ViewSpec
from actors.play import Completion, Sampling, ShownImage
from configs.schema import ModelConfig, RolloutConfig

EXTENSION = "actors.engine.vllm_extension.WeightExtension"


def set_engine_environment(config: RolloutConfig) -> None:
    """Set environment variables that vLLM reads at import. Existing settings of the user take precedence."""
    own_engines()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if config.num_gpus == 0:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(config.kv_cache_gib))
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ["OMP_NUM_THREADS"] = str(config.num_threads)


class VllmEngine:
    """One asynchronous vLLM engine. Implements `play.Generate` and `weight_receiver.WeightTarget`."""

    def __init__(
        self,
        model: ModelConfig,
        rollout: RolloutConfig,
        spec: ViewSpec,
        *,
        end_id: int,
        image_pad_id: int,
        forbidden_ids: Sequence[int],
        seed: int,
    ) -> None:
        set_engine_environment(rollout)
        from vllm.v1.engine.async_llm import AsyncLLM  # reads the environment set above

        budget = token_budget(
            rollout,
            ModelWidths.from_model(model.path),
            spec,
            bytes_per_value=2 if model.dtype == "bfloat16" else 4,
            gpu_memory=_gpu_memory() if rollout.num_gpus > 0 else None,
        )
        self._engine = AsyncLLM.from_vllm_config(_engine_config(model, rollout, budget, seed), disable_log_stats=True)
        self._end_id = end_id
        self._image_pad_id = image_pad_id
        self._forbidden = dict.fromkeys(forbidden_ids, -math.inf)
        self._gate = TurnGate()
        self._numbers = itertools.count()
        self._staging: Path | None = None
        self.version = -1

    async def __call__(
        self, prompt_ids: tuple[int, ...], images: tuple[ShownImage, ...], sampling: Sampling
    ) -> Completion:
        """Sample one completion.

        Raises:
            SampleError: the engine refused the request, failed at it alone, or saw other tokens than we sent.
            RolloutError: the engine is dead, or has no verified weights.
        """
        async with self._gate.turn():
            version = self.version
            if version < 0:
                raise RolloutError("the engine has no verified weights")
            output = await self._generate(self._prompt(prompt_ids, images, version), self._params(sampling))
        if tuple(output.prompt_token_ids) != prompt_ids:
            raise SampleError(
                f"the engine read a prompt of {len(output.prompt_token_ids)} tokens, {len(prompt_ids)} were rendered: "
                "its image processor counts visual tokens differently"
            )
        (choice,) = output.outputs
        token_ids = tuple(choice.token_ids)
        logprobs = tuple(step[token].logprob for step, token in zip(choice.logprobs, token_ids, strict=True))
        if choice.finish_reason not in get_args(FinishReason):
            raise SampleError(f"the engine ended a turn with {choice.finish_reason!r}")
        reason: FinishReason = choice.finish_reason
        return Completion(token_ids=token_ids, logprobs=logprobs, finish_reason=reason, policy_version=version)

    async def _generate(self, prompt: dict[str, Any], params: Any) -> Any:
        from vllm import exceptions
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        last = None
        try:
            async for output in self._engine.generate(prompt, params, request_id=str(next(self._numbers))):
                last = output
        except EngineDeadError as error:
            raise RolloutError(f"vLLM's engine died: {error}") from error
        except EngineGenerateError as error:  # carries no message of its own
            cause = error.__cause__ or error
            raise SampleError(f"vLLM failed at a request: {type(cause).__name__}: {cause}") from error
        except (ValueError, getattr(exceptions, "VLLMClientError", ValueError)) as error:  # the first before 0.32
            raise SampleError(f"vLLM refused a request: {error}") from error
        if last is None:
            raise SampleError("vLLM ended a request without an output")
        return last

    def _prompt(self, prompt_ids: tuple[int, ...], images: tuple[ShownImage, ...], version: int) -> dict[str, Any]:
        return {
            "prompt_token_ids": collapse_placeholders(prompt_ids, self._image_pad_id),
            "multi_modal_data": {"image": [image.picture for image in images]},
            "multi_modal_uuids": {"image": [image.key for image in images]},
            # The prefix cache of other weights is never reused.
            "cache_salt": f"version {version}",
        }

    def _params(self, sampling: Sampling) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            stop_token_ids=[self._end_id],
            logit_bias=self._forbidden,
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    async def stage_weights(self, manifest: WeightManifest, buckets: Sequence[np.ndarray]) -> None:
        """Hand the buckets to the engine's process through shared memory. They are written by a thread.

        Raises:
            WeightSyncError: they do not fit there.
        """
        self._drop_staging()
        self._staging = await asyncio.to_thread(write_buckets, buckets, staging_root())
        await self._engine.collective_rpc("stage_weights", args=(str(self._staging), manifest_to_json(manifest)))

    async def commit_weights(self, manifest: WeightManifest) -> None:
        """Swap in the staged version between turns, and drop all caches of the old one.

        With tensor parallelism each worker holds shards, of which no checksum is known: then only the staged bytes
        were verified, by every worker.
        """
        async with self._gate.closed():
            self.version = -1
            digests = await self._engine.collective_rpc("commit_weights", args=(manifest.version,))
            if len(digests) == 1:
                check_engine_digests(manifest, digests[0])
            await self._engine.reset_prefix_cache()
            await self._engine.reset_encoder_cache()
            self.version = manifest.version
        self._drop_staging()

    def accept_loaded_weights(self) -> None:
        """Serve the weights that the engine loaded from disk, as version 0."""
        self.version = 0

    def _drop_staging(self) -> None:
        if self._staging is not None:
            shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None

    async def check_health(self) -> None:
        """Generate one token, bypassing the gate and with any weights; RolloutError if that fails.

        vLLM's own check looks at whether the engine's process reported a failure. One that hangs reports none.
        """
        from vllm import SamplingParams

        await self._generate({"prompt_token_ids": [self._end_id]}, SamplingParams(max_tokens=1, detokenize=False))

    def shutdown(self) -> None:
        self._drop_staging()
        self._engine.shutdown()


def _engine_config(model: ModelConfig, rollout: RolloutConfig, budget: TokenBudget, seed: int) -> Any:
    from vllm import AsyncEngineArgs

    on_gpu = {"gpu_memory_utilization": rollout.gpu_memory_fraction} if rollout.num_gpus > 0 else {}
    config = AsyncEngineArgs(
        model=model.path,
        tokenizer=model.path,
        dtype=model.dtype,
        load_format="dummy" if model.load == "random" else "auto",
        max_model_len=rollout.max_model_len,
        max_num_seqs=most_turns(rollout),
        max_num_batched_tokens=budget.per_step,
        limit_mm_per_prompt={"image": 2, "video": 0},
        # Views are cut before they get here: bounds so wide that the processor never resizes one.
        mm_processor_kwargs={"min_pixels": 1, "max_pixels": model.max_pixels},
        enforce_eager=rollout.enforce_eager,
        tensor_parallel_size=rollout.tensor_parallel_size,
        logprobs_mode="processed_logprobs",
        generation_config="vllm",
        worker_extension_cls=EXTENSION,
        seed=seed,
        disable_log_stats=True,
        **on_gpu,
    ).create_engine_config()
    # No argument of vLLM's sets these two: it derives them from max_num_batched_tokens and keeps what is set here.
    config.scheduler_config.max_num_encoder_input_tokens = budget.encoder_per_step
    config.scheduler_config.encoder_cache_size = budget.encoder_cache
    return config


def _gpu_memory() -> int:
    """Memory in bytes of the GPU assigned to this process."""
    from vllm.platforms import current_platform

    return int(current_platform.get_device_total_memory())


def collapse_placeholders(prompt_ids: Sequence[int], image_pad_id: int) -> list[int]:
    """One placeholder per image, as vLLM expects: it expands them by its own count, which is then compared."""
    kept = list(prompt_ids[:1])
    for before, token in itertools.pairwise(prompt_ids):
        if token != image_pad_id or before != image_pad_id:
            kept.append(token)
    return kept
