"""What differs between the versions of vLLM that we run (0.26 to 0.33), and nowhere else.

- From 0.32 on a completion says which version of the weights sampled which token. Before, `RunningTurns` counts.
- From 0.32 on a refused request is a VLLMClientError, before a ValueError.
- Up to 0.28 a `WeightTransferEngine` is abstract without its sending half. Its init infos have other fields since.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from actors.episode import VersionSpan
from actors.errors import WeightSyncError


def labels_tokens() -> bool:
    """Whether completions say which version of the weights sampled which tokens."""
    from vllm.outputs import CompletionOutput

    return "weight_versions" in {field.name for field in dataclasses.fields(CompletionOutput)}


def refusals() -> tuple[type[Exception], ...]:
    """The errors that say that a request, and not the engine, is at fault."""
    from vllm import exceptions

    return (ValueError, getattr(exceptions, "VLLMClientError", ValueError))


def known_fields(init_info: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that an init info of the weight transfer has as fields."""
    names = {field.name for field in dataclasses.fields(init_info)}
    return {name: value for name, value in settings.items() if name in names}


class WithoutSendingHalf:
    """For a `WeightTransferEngine`, whose sending half is abstract up to 0.28. Ours is `learner.sync.transports`."""

    @staticmethod
    def trainer_send_weights(iterator: Any, trainer_args: Any) -> None:
        raise WeightSyncError("weights are sent by the learner")


class RunningTurns:
    """The turns of an `AsyncLLM` while the weights change: frozen between two of its steps, and counted by version.

    A caller sets the version while no turn runs, or between `freeze` and `resume`.

    `has_labels`: whether vLLM labels each token with the version of the weights.
    """

    def __init__(self, engine: Any, *, has_labels: bool) -> None:
        self._engine = engine
        self._has_labels = has_labels
        self._version = -1
        self._starts: dict[str, list[tuple[int, int]]] = {}
        """Without labels: (version, tokens sampled before) of each turn in flight."""

    async def freeze(self) -> None:
        """Stop between two engine steps, when no step is in progress any more. The turns keep their KV cache."""
        if self._has_labels:
            # As `AsyncLLM.pause_generation`, which sleeps 20 ms more for callers that look at the outputs.
            await self._engine.engine_core.pause_scheduler_async(mode="keep", clear_cache=False)
        else:
            await self._engine.pause_generation(mode="keep", clear_cache=False)

    async def forget(self) -> None:
        """Drop the KV cache and the encoded pictures of the frozen turns, which are then computed again.

        vLLM's caches of processed pictures stay: they do not depend on the weights.
        """
        await self._engine.reset_prefix_cache(reset_running_requests=True)
        await self._engine.reset_encoder_cache()

    async def set_version(self, version: int) -> None:
        """Tokens sampled from now on are of this version."""
        self._version = version
        if self._has_labels:
            await self._engine.update_weight_version(str(version))
            return
        for request_id, starts in self._starts.items():
            num_sampled = self._num_sampled(request_id)
            if num_sampled is not None:
                starts.append((version, num_sampled))

    async def resume(self) -> None:
        await self._engine.resume_generation()

    async def is_frozen(self) -> bool:
        """As the engine's process says, which thereby shows that it answers."""
        frozen: bool = await self._engine.is_paused()
        return frozen

    @contextlib.contextmanager
    def running(self, request_id: str) -> Iterator[None]:
        """Around a turn, until its `spans` are known."""
        self._starts[request_id] = [(self._version, 0)]
        try:
            yield
        finally:
            del self._starts[request_id]

    def spans(self, request_id: str, choice: Any) -> tuple[VersionSpan, ...]:
        """Which versions sampled a finished completion (vLLM's `CompletionOutput`).

        Without labels, the tokens before a change are those that had reached this process when the engine had been
        frozen for 20 ms. Of a turn that had not reached the engine yet, all tokens count as the older version's.
        """
        if self._has_labels:
            return joined([(int(span.version), span.start) for span in choice.weight_versions], len(choice.token_ids))
        return joined(self._starts[request_id], len(choice.token_ids))

    def _num_sampled(self, request_id: str) -> int | None:
        """Tokens of a running turn so far; None before it is known to vLLM, and after its end."""
        processor = self._engine.output_processor
        for internal_id in processor.external_req_ids.get(request_id, ()):
            num_sampled: int = processor.request_states[internal_id].detokenizer.num_output_tokens()
            return num_sampled
        return None


def joined(starts: Sequence[tuple[int, int]], num_tokens: int) -> tuple[VersionSpan, ...]:
    """Spans from (version, first token) in order; neighbours of one version are one span, and empty ones are left out.

    Always at least one: of an empty completion, the version that would have sampled it.
    """
    ends = [start for _, start in starts[1:]] + [num_tokens]
    spans: list[VersionSpan] = []
    for (version, start), end in zip(starts, ends, strict=True):
        if spans and spans[-1].version == version:
            spans[-1] = VersionSpan(version=version, num_tokens=spans[-1].num_tokens + end - start)
        elif end > start:
            spans.append(VersionSpan(version=version, num_tokens=end - start))
    return tuple(spans) or (VersionSpan(version=starts[-1][0], num_tokens=0),)
