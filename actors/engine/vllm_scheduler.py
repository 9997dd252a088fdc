"""vLLM's schedulers, with log-probabilities that leave the engine's process once a turn instead of with every token.

For each token vLLM slices three arrays out of the batch, encodes them, and sends them to the process that asked, which
is most of what a step costs in Python once the model itself is quick. Nobody reads them before the turn has ended.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import LogprobsLists

from actors.engine.turn_logprobs import Sampled, TurnLogprobs


class _LogprobsLast:
    """To be the first base of a vLLM scheduler. The ranks of sampled tokens are not kept: all are 0."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._kept = TurnLogprobs()

    def add_request(self, request: Any) -> None:
        super().add_request(request)  # type: ignore[misc]
        if request.sampling_params is not None and request.sampling_params.num_logprobs is not None:
            self._kept.begin(request.request_id)

    def finish_requests(self, *args: Any, **kwargs: Any) -> list[Any]:
        """vLLM calls this for what does not end by itself."""
        finished: list[Any] = super().finish_requests(*args, **kwargs)  # type: ignore[misc]
        for request in finished:
            self._kept.forget(request.request_id)
        return finished

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> dict[int, Any]:
        step, model_runner_output.logprobs = model_runner_output.logprobs, None
        updates: dict[int, Any] = super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]
        # The first column is the sampled token's.
        values, starts = ([], None) if step is None else (step.logprobs[:, 0].tolist(), step.cu_num_generated_tokens)
        for output in (output for update in updates.values() for output in update.outputs):
            turn = self._kept.add(output, values, model_runner_output.req_id_to_index, starts)
            if turn is not None:
                output.new_logprobs = _as_lists(turn)
        return updates


def _as_lists(turn: Sampled) -> LogprobsLists:
    token_ids, values = np.array(turn[0], dtype=np.int32), np.array(turn[1], dtype=np.float32)
    return LogprobsLists(token_ids[:, None], values[:, None], np.zeros_like(token_ids), None)


class LogprobsLastScheduler(_LogprobsLast, Scheduler):  # type: ignore[misc]
    """Where a step is scheduled after the one before has ended."""


class LogprobsLastAsyncScheduler(_LogprobsLast, AsyncScheduler):  # type: ignore[misc]
    """Where a step is scheduled while the one before runs."""
