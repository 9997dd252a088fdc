"""Counts what an engine computes: pictures through its vision tower, and prompt tokens that its caches did not hold.

`CountingEngine` is the engine of a run with a hook on two modules of the model. Prompt tokens are counted by vLLM
itself (`RequestOutput.num_cached_tokens`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from actors.engine.vllm_engine import VllmEngine
from actors.play import OnTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedTurn:
    """One request of an engine, as vLLM accounts for it."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    images: tuple[str, ...]
    """Keys of its pictures, the version included."""
    salt: str
    num_cached: int
    """Prompt tokens whose keys and values lay in the cache."""

    @property
    def num_prefilled(self) -> int:
        return len(self.prompt_ids) - self.num_cached


class CountingEngine(VllmEngine):
    extension = "tests.bench.counting_extension.CountingExtension"

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.turns: list[CountedTurn] = []

    async def set_version(self, version: int) -> None:
        """Call the weights so from the next turn on, whatever they are."""
        await self._turns.set_version(version)
        self.version = version

    async def _generate(
        self, prompt: dict[str, Any], params: Any, request_id: str, on_tokens: OnTokens | None = None
    ) -> Any:
        output = await super()._generate(prompt, params, request_id, on_tokens)
        self.turns.append(
            CountedTurn(
                prompt_ids=tuple(output.prompt_token_ids),
                completion_ids=tuple(output.outputs[0].token_ids),
                images=tuple(prompt.get("multi_modal_uuids", {}).get("image", ())),
                salt=prompt.get("cache_salt", ""),
                num_cached=output.num_cached_tokens,
            )
        )
        return output

    async def start_counting(self) -> None:
        """Forget what was counted so far."""
        self.turns.clear()
        await self._call("start_counting")

    async def compute(self) -> dict[str, float]:
        """Since `start_counting`, in one of the engine's processes: see `CountingExtension.counted`."""
        (first, *_) = await self._call("counted")
        return dict(first)


def tokens_to_prefill(turns: Iterable[CountedTurn]) -> int:
    """Prompt tokens that an ideal cache would compute: each distinct prefix once, generated tokens never again.

    The last token of a completion is computed by the turn that follows it.
    """
    known: set[int] = set()
    missing = 0
    for turn in sorted(turns, key=lambda turn: len(turn.prompt_ids)):
        prefix = hash((turn.salt, turn.images[:1]))
        num_decoded = max(len(turn.completion_ids) - 1, 0)
        for position, token in enumerate(turn.prompt_ids + turn.completion_ids[:num_decoded]):
            prefix = hash((prefix, token))
            if position < len(turn.prompt_ids):
                missing += prefix not in known
            known.add(prefix)
    return missing


def reused_share(turns: Sequence[CountedTurn]) -> float:
    """Of the tokens of first turns, the share that the second turns found in the cache."""
    shown = {turn.prompt_ids + turn.completion_ids for turn in turns if len(turn.images) == 1}
    found = total = 0
    for turn in turns:
        if len(turn.images) == 2:
            first = max((said for said in shown if turn.prompt_ids[: len(said)] == said), key=len)
            found, total = found + min(turn.num_cached, len(first)), total + len(first)
    return found / total if total else 1.0
