"""Completions, chunks of a stream, and usage, in OpenAI's schema.

Reasoning stands beside the answer under both of its names: `reasoning`, which vLLM writes, and `reasoning_content`,
which it wrote before and which most clients read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from actors.episode import Status
from cluster.serving.deltas import Delta
from cluster.serving.policy import Answered


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyHead:
    """What all parts of a reply share."""

    id: str
    created: int
    """Unix time in seconds."""
    model: str

    def completion(self, answered: Answered) -> dict[str, Any]:
        reasoning = answered.text("reasoning")
        message = {
            "role": "assistant",
            "content": answered.text("answer"),
            "refusal": None,
            "reasoning": reasoning,
            "reasoning_content": reasoning,
        }
        choice = {"index": 0, "message": message, "logprobs": None, **_ending(answered)}
        return {**self._common("chat.completion"), "choices": [choice], "usage": usage(answered)}

    def opening(self) -> dict[str, Any]:
        return self._chunk({"role": "assistant", "content": ""})

    def delta(self, delta: Delta) -> dict[str, Any]:
        if delta.channel == "answer":
            return self._chunk({"content": delta.text})
        return self._chunk({"reasoning": delta.text, "reasoning_content": delta.text})

    def closing(self, answered: Answered) -> dict[str, Any]:
        return self._chunk({}, **_ending(answered))

    def usage(self, answered: Answered) -> dict[str, Any]:
        """The last chunk, where the client asked for it (`stream_options.include_usage`)."""
        return {**self._common("chat.completion.chunk"), "choices": [], "usage": usage(answered)}

    def _chunk(self, delta: dict[str, Any], **ending: Any) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, **ending}
        return {**self._common("chat.completion.chunk"), "choices": [choice]}

    def _common(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def _ending(answered: Answered) -> dict[str, Any]:
    """`status` is ours: a reply that broke the format ends with `stop` like any other."""
    status = answered.episode.status
    return {"finish_reason": "length" if status is Status.TRUNCATED else "stop", "status": status.value}


def usage(answered: Answered) -> dict[str, Any]:
    """Tokens of all turns. `visual_tokens` are among the prompt tokens; `saved` is negative where asking cost more."""
    episode, full = answered.episode, answered.num_full_tokens
    spent = episode.num_visual_tokens
    tools: dict[str, dict[str, int]] = {}
    for turn in episode.calls:
        used = tools.setdefault(str(turn.tool), {"calls": 0, "visual_tokens": 0})
        used["calls"] += 1
        used["visual_tokens"] += turn.num_visual_tokens
    return {
        "prompt_tokens": answered.num_prompt_tokens,
        "completion_tokens": episode.num_generated_tokens,
        "total_tokens": answered.num_prompt_tokens + episode.num_generated_tokens,
        "visual_tokens": {"spent": spent, "always_full": full, "saved": full - spent},
        "asked": episode.asked,
        "tools": tools,
        "refused_calls": len(episode.turns) - 1 - len(episode.calls),
    }
