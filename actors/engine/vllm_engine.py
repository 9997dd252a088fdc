"""vLLM behind the `Generate` protocol. With the files beside it, all of a rollout worker that knows vLLM (0.26-0.33).

Token ids go in and come out. Log-probabilities are those of the distribution that was sampled from: after temperature
and after the vision tokens were ruled out. A commit holds new turns back and either waits until the turns in flight
have ended, or takes place between two engine steps, so that they go on under the new version (`weights.in_flight`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from actors.engine.budget import ModelWidths, token_budget
from actors.engine.engine_config import engine_config, gpu_memory, set_engine_environment
from actors.engine.gate import TurnGate
from actors.engine.quick_start import engine_forked
from actors.engine.vllm_versions import RunningTurns, labels_tokens, refusals
from actors.episode import FinishReason
from actors.errors import RolloutError, SampleError, WeightSyncError
from actors.images import ViewSpec
from actors.importing import no_collections
from actors.play import Completion, OnTokens, Sampling, ShownImage
from actors.weights.layout import WeightLink, WeightOffer
from configs.learner import InFlight, Transport
from configs.schema import ModelConfig, RolloutConfig

POLL_S = 0.0005
"""Minimum between two questions whether a version has arrived; they cost a CPU engine time that the copy needs."""
POLL_SHARE = 1 / 16
"""Of the time that passed until the last question: until the next one."""


class VllmEngine:
    """One asynchronous vLLM engine. Implements `play.Generate` and `actors.weights.receiver.WeightTarget`."""

    extension = "actors.engine.vllm_extension.WeightExtension"
    """The class that vLLM mixes into its workers."""

    def __init__(
        self,
        model: ModelConfig,
        rollout: RolloutConfig,
        spec: ViewSpec,
        *,
        end_id: int,
        image_pad_id: int,
        forbidden_ids: Sequence[int],
        transport: Transport,
        in_flight: InFlight,
        can_sleep: bool,
        seed: int,
    ) -> None:
        engine_class = import_engine(rollout)
        budget = token_budget(
            rollout,
            ModelWidths.from_model(model.path),
            spec,
            bytes_per_value=2 if model.dtype == "bfloat16" else 4,
            gpu_memory=gpu_memory() if rollout.num_gpus > 0 else None,
        )
        config = engine_config(
            model, rollout, budget, extension=self.extension, transport=transport, can_sleep=can_sleep, seed=seed
        )
        with engine_forked(rollout):
            self._engine = engine_class.from_vllm_config(config, disable_log_stats=True)
        self._end_id = end_id
        self._image_pad_id = image_pad_id
        self._forbidden = dict.fromkeys(forbidden_ids, -math.inf)
        self._in_flight = in_flight
        self._turns = RunningTurns(self._engine, has_labels=labels_tokens())
        self._gate = TurnGate()
        self._numbers = itertools.count()
        self._is_staged = True
        self._is_asleep = False
        self._standstill = contextlib.AsyncExitStack()
        self._still_since = 0.0
        self._timeout_s = 0.0
        self.version = -1

    async def __call__(
        self,
        prompt_ids: tuple[int, ...],
        images: tuple[ShownImage, ...],
        sampling: Sampling,
        on_tokens: OnTokens | None = None,
    ) -> Completion:
        """Sample one completion, and tell `on_tokens` of its tokens as they come. Cancelling this aborts the request.

        Raises:
            SampleError: the engine refused the request, failed at it alone, or saw other tokens than we sent.
            RolloutError: the engine is dead, or has no verified weights.
        """
        async with self._gate.turn():
            version = self.version
            if version < 0:
                raise RolloutError("the engine has no verified weights")
            request_id = str(next(self._numbers))
            with self._turns.running(request_id):
                prompt, params = self._prompt(prompt_ids, images, version), self._params(sampling, on_tokens)
                output = await self._generate(prompt, params, request_id, on_tokens)
                (choice,) = output.outputs
                if choice.finish_reason not in get_args(FinishReason):  # and then it has no versions
                    raise SampleError(f"the engine ended a turn with {choice.finish_reason!r}")
                spans = self._turns.spans(request_id, choice)
        if tuple(output.prompt_token_ids) != prompt_ids:
            raise SampleError(
                f"the engine read a prompt of {len(output.prompt_token_ids)} tokens, {len(prompt_ids)} were rendered: "
                "its image processor counts visual tokens differently"
            )
        token_ids = tuple(choice.token_ids)
        logprobs = (math.nan,) * len(token_ids)
        if sampling.has_logprobs:
            logprobs = tuple(choice.logprobs.logprobs)
            if len(logprobs) != len(token_ids):
                raise SampleError(f"the engine gave {len(logprobs)} log-probabilities for {len(token_ids)} tokens")
        reason: FinishReason = choice.finish_reason
        return Completion(token_ids=token_ids, logprobs=logprobs, finish_reason=reason, version_spans=spans)

    async def _generate(
        self, prompt: dict[str, Any], params: Any, request_id: str, on_tokens: OnTokens | None = None
    ) -> Any:
        from vllm.v1.engine.exceptions import EngineGenerateError

        last, num_told = None, 0
        try:
            with _named_death():
                rendered = await self._rendered(prompt, params, request_id)
                async for output in self._engine.generate(rendered, params, request_id=request_id):
                    last = output
                    if on_tokens is not None:
                        token_ids = output.outputs[0].token_ids
                        on_tokens(tuple(token_ids[num_told:]))
                        num_told = len(token_ids)
        except EngineGenerateError as error:  # carries no message of its own
            cause = error.__cause__ or error
            raise SampleError(f"vLLM failed at a request: {type(cause).__name__}: {cause}") from error
        except refusals() as error:
            raise SampleError(f"vLLM refused a request: {error}") from error
        if last is None:
            raise SampleError("vLLM ended a request without an output")
        return last

    async def _rendered(self, prompt: dict[str, Any], params: Any, request_id: str) -> Any:
        """The prompt as the engine takes it, its pictures as patches, made in a thread of vLLM's.

        `generate` would make them as well, in vLLM 0.26 on the event loop, where a picture of 4 megapixels takes 0.1 s
        from all other turns.
        """
        rendering = asyncio.ensure_future(self._engine.renderer.render_cmpl_async([prompt]))
        try:
            (rendered,) = await asyncio.shield(rendering)
        except asyncio.CancelledError:
            # What it has rendered vLLM takes to be in the engine's cache, and does not send again.
            await asyncio.wait([rendering])
            if rendering.exception() is None:
                await self._engine.add_request(request_id, rendering.result()[0], params)
                await self._engine.abort(request_id)
            raise
        return rendered

    def _prompt(self, prompt_ids: tuple[int, ...], images: tuple[ShownImage, ...], version: int) -> dict[str, Any]:
        return {
            "prompt_token_ids": collapse_placeholders(prompt_ids, self._image_pad_id),
            "multi_modal_data": {"image": [image.picture for image in images]},
            # No later turn uses a cache of other weights: neither of encoded pictures, nor of prefixes.
            "multi_modal_uuids": {"image": [f"{image.key}@{version}" for image in images]},
            "cache_salt": f"version {version}",
        }

    def _params(self, sampling: Sampling, on_tokens: OnTokens | None) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            max_tokens=sampling.max_tokens,
            stop_token_ids=[self._end_id],
            logit_bias=self._forbidden,
            logprobs=0 if sampling.has_logprobs else None,
            flat_logprobs=sampling.has_logprobs,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY if on_tokens is None else RequestOutputKind.CUMULATIVE,
        )

    @property
    def is_staged(self) -> bool:
        return self._is_staged

    async def connect_weights(self, link: WeightLink) -> None:
        """Join the learner.

        Raises:
            WeightSyncError: that failed, or took too long.
        """
        self._timeout_s = link.timeout_s
        await self._in_background("connect_weights", link.layout.to_plain(), link.settings)
        self._is_staged = all(await self._call("weights_are_staged"))

    async def receive_weights(self, offer: WeightOffer) -> None:
        """Receive a version, beside the one in use if there is room, else in its place while nothing is generated.

        Raises:
            WeightSyncError: that failed, or took too long.
        """
        if not self._is_staged:
            await self._stand_still(drain=self._in_flight == "drain")
        await self._in_background("receive_weights", {"version": offer.version, **offer.delivery})

    async def commit_weights(self, version: int, digests: Sequence[int]) -> float:
        """Serve the received version; returns the seconds for which nothing was generated.

        Turns that start later share no cache with earlier ones: the version is part of every key (`_prompt`). Those in
        flight have ended (`drain`), or go on with their KV cache (`keep`) or without it (`recompute`).
        """
        await self._stand_still(drain=self._in_flight == "drain")
        self.version = -1
        if self._is_asleep:
            with _named_death():
                await self._engine.wake_up(["weights"])
        problems = [each for each in await self._call("commit_weights", list(digests)) if each]
        if problems:
            raise WeightSyncError(f"version {version}: {problems[0]}")
        if self._is_asleep:
            with _named_death():
                await self._engine.wake_up(["kv_cache"])
            self._is_asleep = False
        with _named_death():
            if self._in_flight == "recompute":
                await self._turns.forget()
            await self._turns.set_version(version)
            self.version = version
            await self._standstill.aclose()
        return time.perf_counter() - self._still_since

    async def sleep(self) -> None:
        """Give the memory of weights and KV cache back to the GPU until the next version is committed."""
        await self._stand_still(drain=True)
        self.version = -1
        with _named_death():
            await self._engine.sleep(level=2)  # the weights are not kept: a version follows
        self._is_asleep = True

    async def disconnect_weights(self) -> None:
        """Leave the learner, whatever is under way."""
        await self._call("disconnect_weights")

    async def _stand_still(self, *, drain: bool) -> None:
        """Hold new turns back, and wait for those in flight or freeze them, until `_standstill` is closed."""
        if self._gate.is_closed:
            return
        await self._standstill.enter_async_context(self._gate.closed(drain=drain))
        if not drain:
            with _named_death():
                await self._turns.freeze()
            self._standstill.push_async_callback(self._turns.resume)
        self._still_since = time.perf_counter()

    async def _in_background(self, method: str, *arguments: Any) -> None:
        """Start something in the engine's processes and wait for its end, while they go on generating."""
        started = time.monotonic()
        answers = await self._call(method, *arguments)
        try:
            async with asyncio.timeout(self._timeout_s):
                while not all(has_ended for has_ended, _ in answers):
                    await asyncio.sleep(max(POLL_S, POLL_SHARE * (time.monotonic() - started)))
                    answers = await self._call("weights_arrived")
        except TimeoutError as error:
            await self.disconnect_weights()
            raise WeightSyncError(f"{method} did not end within weights.timeout_s={self._timeout_s:g}") from error
        failures = [failure for _, failure in answers if failure]
        if failures:
            raise WeightSyncError(f"{method}: {failures[0]}")

    async def _call(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of `vllm_extension.WeightExtension` in each of the engine's processes.

        Raises:
            RolloutError: the engine is dead.
        """
        with _named_death():
            answers: list[Any] = await self._engine.collective_rpc(method, args=arguments)
        return answers

    async def accept_loaded_weights(self) -> None:
        """Serve the weights that the engine loaded from disk, as version 0."""
        with _named_death():
            await self._turns.set_version(0)
        self.version = 0

    async def check_health(self) -> None:
        """Generate one token, bypassing the gate and with any weights; RolloutError if that fails.

        vLLM's own check looks at whether the engine's process reported a failure. One that hangs reports none. Of a
        frozen engine, that it answers is enough.
        """
        from vllm import SamplingParams

        with _named_death():
            if await self._turns.is_frozen():
                return
        prompt, params = {"prompt_token_ids": [self._end_id]}, SamplingParams(max_tokens=1, detokenize=False)
        await self._generate(prompt, params, str(next(self._numbers)))

    def shutdown(self) -> None:
        """End the engine's processes. Nothing else may be called afterwards."""
        self._engine.shutdown()
        del self._engine, self._turns  # vLLM complains of an engine that is collected at the end of the process


def import_engine(rollout: RolloutConfig) -> Any:
    """vLLM's `AsyncLLM`, for which this process must be the one that is to own the engine."""
    set_engine_environment(rollout)
    with no_collections():
        from vllm.v1.engine.async_llm import AsyncLLM  # reads the environment set above
    return AsyncLLM


@contextlib.contextmanager
def _named_death() -> Iterator[None]:
    """Raise RolloutError where vLLM says that its engine is dead."""
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError as error:
        raise RolloutError(f"vLLM's engine died: {error}") from error


def collapse_placeholders(prompt_ids: Sequence[int], image_pad_id: int) -> list[int]:
    """One placeholder per image, as vLLM expects: it expands them by its own count, which is then compared."""
    kept = list(prompt_ids[:1])
    for before, token in itertools.pairwise(prompt_ids):
        if token != image_pad_id or before != image_pad_id:
            kept.append(token)
    return kept
