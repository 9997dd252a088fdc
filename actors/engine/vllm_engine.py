"""vLLM behind the `Generate` protocol. With `vllm_extension.py`, the only code that knows vLLM, from 0.26 to 0.33.

Token ids go in and come out. Log-probabilities are those of the distribution that was sampled from: after temperature
and after the vision tokens were ruled out. A turn is sampled under one version of the weights: a commit waits until
the turns in flight have ended, and holds new ones back meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image

from actors.engine.owner import own_engines
from actors.engine.weight_receiver import WeightManifest, check_engine_digests, manifest_to_json
from actors.episode import FinishReason
from actors.errors import RolloutError
from actors.play import Completion, Sampling, ShownImage
from configs.schema import ModelConfig, RolloutConfig

EXTENSION = "actors.engine.vllm_extension.WeightExtension"


def set_engine_environment(config: RolloutConfig) -> None:
    """Process environment that vLLM reads when it is imported. An earlier setting by the user wins."""
    own_engines()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if config.num_gpus == 0:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(config.kv_cache_gib))
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ["OMP_NUM_THREADS"] = str(config.num_threads)


class TurnGate:
    """Lets turns through, or holds them back while the weights change. Pure asyncio."""

    def __init__(self) -> None:
        self._num_inside = 0
        self._changed = asyncio.Condition()
        self._closed = False

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._closed)
            self._num_inside += 1
        try:
            yield
        finally:
            async with self._changed:
                self._num_inside -= 1
                self._changed.notify_all()

    @contextlib.asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        """Entered once no turn is in flight; no turn starts before it is left."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._closed)
            self._closed = True
            await self._changed.wait_for(lambda: self._num_inside == 0)
        try:
            yield
        finally:
            async with self._changed:
                self._closed = False
                self._changed.notify_all()


class VllmEngine:
    """One asynchronous vLLM engine. Implements `play.Generate` and `weight_receiver.WeightTarget`."""

    def __init__(
        self,
        model: ModelConfig,
        rollout: RolloutConfig,
        *,
        end_id: int,
        image_pad_id: int,
        forbidden_ids: Sequence[int],
        seed: int,
    ) -> None:
        set_engine_environment(rollout)
        from vllm import AsyncEngineArgs  # reads the environment set above
        from vllm.v1.engine.async_llm import AsyncLLM

        on_gpu: dict[str, Any] = {}
        if rollout.num_gpus > 0:
            on_gpu = {"gpu_memory_utilization": rollout.gpu_memory_fraction}
        self._engine = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=model.path,
                tokenizer=model.path,
                dtype=model.dtype,
                load_format="dummy" if model.load == "random" else "auto",
                max_model_len=rollout.max_model_len,
                max_num_seqs=rollout.max_groups_in_flight * rollout.group_size,
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
            )
        )
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
        """Sample one completion. Raises RolloutError when the engine is dead or saw other tokens than we sent."""
        async with self._gate.turn():
            version = self.version
            if version < 0:
                raise RolloutError("the engine holds no verified weights")
            output = await self._generate(self._prompt(prompt_ids, images, version), self._params(sampling))
        if tuple(output.prompt_token_ids) != prompt_ids:
            raise RolloutError(
                f"the engine read a prompt of {len(output.prompt_token_ids)} tokens, {len(prompt_ids)} were rendered: "
                "its image processor counts visual tokens differently"
            )
        (choice,) = output.outputs
        token_ids = tuple(choice.token_ids)
        logprobs = tuple(step[token].logprob for step, token in zip(choice.logprobs, token_ids, strict=True))
        if choice.finish_reason not in get_args(FinishReason):
            raise RolloutError(f"the engine ended a turn with {choice.finish_reason!r}")
        reason: FinishReason = choice.finish_reason
        return Completion(token_ids=token_ids, logprobs=logprobs, finish_reason=reason, policy_version=version)

    async def _generate(self, prompt: dict[str, Any], params: Any) -> Any:
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        last = None
        try:
            async for output in self._engine.generate(prompt, params, request_id=str(next(self._numbers))):
                last = output
        except (EngineDeadError, EngineGenerateError) as error:
            raise RolloutError(f"vLLM's engine failed: {error}") from error
        assert last is not None
        return last

    def _prompt(self, prompt_ids: tuple[int, ...], images: tuple[ShownImage, ...], version: int) -> dict[str, Any]:
        return {
            "prompt_token_ids": collapse_placeholders(prompt_ids, self._image_pad_id),
            "multi_modal_data": {"image": [Image.fromarray(image.pixels) for image in images]},
            "multi_modal_uuids": {"image": [image.key for image in images]},
            # Keys and values computed under other weights are never reused.
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
        """Hand the buckets to the engine's process through shared memory."""
        self._drop_staging()
        shared = Path("/dev/shm")
        self._staging = Path(tempfile.mkdtemp(prefix="visionthink-weights-", dir=shared if shared.is_dir() else None))
        for number, bucket in enumerate(buckets):
            bucket.tofile(self._staging / str(number))
        await self._engine.collective_rpc("stage_weights", args=(str(self._staging), manifest_to_json(manifest)))

    async def commit_weights(self, manifest: WeightManifest) -> None:
        """Swap in the staged version between turns, and forget all that was computed under the old one.

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

    def trust_loaded(self) -> None:
        """Serve the weights that the engine read from disk, as version 0."""
        self.version = 0

    def _drop_staging(self) -> None:
        if self._staging is not None:
            shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None

    async def check_health(self) -> None:
        """Raise RolloutError if the engine's process is gone."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            await self._engine.check_health()
        except EngineDeadError as error:
            raise RolloutError(f"vLLM's engine died: {error}") from error

    def shutdown(self) -> None:
        self._drop_staging()
        self._engine.shutdown()


def collapse_placeholders(prompt_ids: Sequence[int], image_pad_id: int) -> list[int]:
    """One placeholder per picture, as vLLM takes prompts: it expands them by its own count, which we then compare."""
    kept = list(prompt_ids[:1])
    for before, token in itertools.pairwise(prompt_ids):
        if token != image_pad_id or before != image_pad_id:
            kept.append(token)
    return kept
