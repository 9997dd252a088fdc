"""The log-probabilities of turns in progress, kept in the engine's process until a turn ends. Imports no vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias


class StepOutput(Protocol):
    """What one step of the engine says of one request: the part of vLLM's `EngineCoreOutput` that is read here."""

    request_id: str
    new_token_ids: list[int]
    finish_reason: object


Sampled: TypeAlias = tuple[list[int], list[float]]
"""The token ids of a turn and their log-probabilities, in order."""


class TurnLogprobs:
    """Of the requests that want them."""

    def __init__(self) -> None:
        self._turns: dict[str, Sampled] = {}

    def __len__(self) -> int:
        return len(self._turns)

    def begin(self, request_id: str) -> None:
        self._turns[request_id] = ([], [])

    def forget(self, request_id: str) -> None:
        """Of a request that was aborted, or failed; one that is not known is none of ours."""
        self._turns.pop(request_id, None)

    def add(
        self, output: StepOutput, values: Sequence[float], rows: Mapping[str, int], starts: Sequence[int] | None = None
    ) -> Sampled | None:
        """Keep what a step sampled for one request; all of the turn where this was its last step.

        Args:
            values: the log-probabilities of all tokens that the step sampled.
            rows: the place of each request in the step.
            starts: where a request's values begin, by place; without them it has one.
        """
        if (turn := self._turns.get(output.request_id)) is None:
            return None
        if output.new_token_ids:
            row = rows[output.request_id]
            start = row if starts is None else starts[row]
            turn[0].extend(output.new_token_ids)
            turn[1].extend(values[start : start + len(output.new_token_ids)])
        return None if output.finish_reason is None else self._turns.pop(output.request_id)
